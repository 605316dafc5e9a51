"""A network as the graph of its operations (torch.fx), each with its shape and with how it treats channels."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node

from ..errors import UserError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ELEMENTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softplus, nn.Softsign, nn.Softshrink, nn.LogSigmoid),
    *(nn.Tanhshrink, nn.Threshold, nn.Identity, *DROPOUTS),
    *(F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid),
    *(F.hardtanh, F.softplus, F.softsign, F.logsigmoid, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp),
    *(F.sigmoid, F.tanh, torch.abs, torch.square, torch.exp, torch.neg, torch.clone),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max"),
    *(
        "add",
        "add_",
        "sub",
        "sub_",
        "mul",
        "mul_",
        "div",
        "div_",
        "abs",
        "neg",
        "square",
        "exp",
        "contiguous",
        "clone",
        "detach",
    ),
}
PRODUCTS = {torch.mul, operator.mul, operator.imul, "mul", "mul_"}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, F.relu_, torch.relu_}
# Over positions within a channel; a constant channel stays the same constant.
OVER_POSITIONS = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.interpolate),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
}
AVERAGES = {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
MEANS = {torch.mean, "mean"}
FLATTENS = {nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape"}
CONCATENATIONS = {torch.cat, torch.concat}


class Select(nn.Module):
    """Reads the features ``index``, (kept,) int64, of its input's last axis: what a dense layer behind it reads of them."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., kept)."""
        return x.index_select(-1, self.index)

    def extra_repr(self) -> str:
        """The number of features kept."""
        return f"{len(self.index)} features"


@dataclass
class Traced:
    """A network's graph; ``shapes`` holds those of the tensors among its values, for the example."""

    module: fx.GraphModule
    shapes: dict[Node, torch.Size]

    def target(self, node: Node) -> Any:
        """The module's class, the function, or the method's name: what the tables above are keyed by."""
        if node.op != "call_module":
            return node.target
        module = self.module.get_submodule(str(node.target))
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        return None if hooked else type(module)

    def layer(self, node: Node) -> Any:
        """The module that a ``call_module`` node calls."""
        return self.module.get_submodule(str(node.target))

    def inputs(self, node: Node) -> list[Node]:
        """The tensors that a node reads."""
        return [other for other in node.all_input_nodes if other in self.shapes]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Select) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, torch.Size] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return result


def trace(network: nn.Module, example: tuple[Any, ...]) -> Traced:
    """The graph of ``network``, in evaluation mode, that shares its modules.

    Raises:
        UserError: where torch.fx cannot follow the network's code, or it does not run on the example.
    """
    try:
        # Called inside a module of its own: a network that is a single layer is a leaf like any other.
        root = network if _has_graph(network) else nn.Sequential(OrderedDict(layer=network))
        module = fx.GraphModule(root, _Tracer().trace(root), type(network).__name__)
    except Exception as error:  # the network's own code, run on stand-ins for tensors, can fail in any way
        raise UserError(f"the network cannot be traced by torch.fx: {first_line(error)}") from error
    settle_in_place(module)
    return Traced(module, shapes(module, example))


def _has_graph(network: nn.Module) -> bool:
    return isinstance(network, fx.GraphModule | nn.Sequential) or not type(network).__module__.startswith("torch.nn")


@torch.no_grad()
def shapes(module: fx.GraphModule, example: tuple[Any, ...]) -> dict[Node, torch.Size]:
    """Of every tensor that the graph computes from the example."""
    interpreter = _Shapes(module)
    try:
        interpreter.run(*copied(example))
    except Exception as error:
        raise UserError(f"the network does not run on the example: {first_line(error)}") from error
    return interpreter.shapes


def copied(example: tuple[Any, ...]) -> list[Any]:
    """The example's tensors anew: a network may begin with an operation in place."""
    return [part.clone() if isinstance(part, Tensor) else part for part in example]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def settle_in_place(module: fx.GraphModule) -> None:
    """Let who reads a tensor after an operation in place on it read that operation's result: the graph then tells the order."""
    traced = Traced(module, {})
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        if node.all_input_nodes and _in_place(traced, node):
            written = node.all_input_nodes[0]
            for reader in list(written.users):
                if order[reader] > order[node]:
                    reader.replace_input_with(written, node)
    module.recompile()


def _in_place(traced: Traced, node: Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.layer(node), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    takes_flag = node.op == "call_function" and node.target in (F.relu, F.relu6, F.silu, F.mish, F.selu, F.hardswish)
    flag = node.kwargs.get("inplace", len(node.args) > 1 and takes_flag and node.args[1])
    return node.op == "call_function" and (bool(flag) or node.target in IN_PLACE)


def kind(traced: Traced, node: Node) -> str:
    """How the operation treats channels: one of the names below, "other" where it is not known."""
    target, channels = traced.target(node), traced.shapes[node]
    if node.op in ("placeholder", "get_attr", "output"):
        return node.op
    sources = traced.inputs(node)
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("linear", lambda: target is nn.Linear),
        ("convolution", lambda: target in CONVOLUTIONS),
        ("norm", lambda: target in NORMS and traced.layer(node).running_mean is not None),
        ("elementwise", lambda: target in ELEMENTWISE or silent_dropout(node) or _single_slope(traced, node)),
        ("over positions", lambda: target in OVER_POSITIONS or (target in MEANS and _spatial_mean(node, channels))),
        ("flatten", lambda: target in FLATTENS and _flattens(traced, node)),
        ("select", lambda: target is Select),
        ("concatenation", lambda: target in CONCATENATIONS and _dimension(node) in (1, 1 - len(channels))),
    ]
    return next((name for name, holds in checks if sources and holds()), "other")


def silent_dropout(node: Node) -> bool:
    """Whether a functional dropout was traced in evaluation, where it does nothing."""
    if node.target not in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False


def _single_slope(traced: Traced, node: Node) -> bool:
    return traced.target(node) is nn.PReLU and traced.layer(node).num_parameters == 1


def _dimension(node: Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _spatial_mean(node: Node, shape: torch.Size) -> bool:
    """Whether a mean leaves the batch and the channels, axes 0 and 1, alone."""
    dims = _dimension(node) if len(node.args) > 1 or "dim" in node.kwargs else 0
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not all(isinstance(dim, int) for dim in dims):
        return False
    rank = len(shape) if keeps else len(shape) + len(dims)
    return all(dim % rank >= 2 for dim in dims)


def _flattens(traced: Traced, node: Node) -> bool:
    """Whether (batch, channels, ...) becomes (batch, features) in order, whatever the code calls that."""
    sources, result = traced.inputs(node), traced.shapes[node]
    before = traced.shapes[sources[0]]
    if any(isinstance(part, torch.dtype) for part in (*node.args, *node.kwargs.values())):  # a view of the bytes
        return False
    return len(sources) == 1 and len(before) >= 2 and len(result) == 2 and before[0] == result[0]


def pads_with_zeros(layer: Any) -> bool:
    """Whether a convolution reads zeros beyond the border, where a constant channel is then not constant."""
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return any(size > 0 for size in layer.padding)


def averages_with_zeros(traced: Traced, node: Node) -> bool:
    """Whether an average pooling may count zeros beyond the border, or divide by another number."""
    if traced.target(node) not in AVERAGES:
        return False
    if node.op == "call_module":
        layer = traced.layer(node)
        padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
        return any(padding) or getattr(layer, "divisor_override", None) is not None
    return len(node.args) > 3 or bool({"padding", "divisor_override"} & node.kwargs.keys())


def reads_channel_count(node: Node, rank: int, axis: int) -> bool:
    """Whether a node that gives no tensor (a size, a shape) may tell the code how many channels there are, along ``axis``."""
    if node.target == "dim" or (node.target is getattr and node.args[1] in ("device", "dtype")):
        return False
    if node.target == "size" and len(node.args) > 1:
        return _covers(node.args[1], rank, axis)
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        read = [user for user in node.users if user.users]
        return any(user.target is not operator.getitem or _covers(user.args[1], rank, axis) for user in read)
    return True


def _covers(index: Any, rank: int, axis: int) -> bool:
    """Whether an index or slice of a shape takes in an axis."""
    if not isinstance(index, int | slice):
        return True
    try:
        found = range(rank)[index]
    except (IndexError, TypeError):  # a slice whose ends are computed
        return True
    return axis in (found if isinstance(found, range) else (found,))


def before_a_layer(traced: Traced, nodes: Iterable[Node]) -> list[Node]:
    """Of ``nodes``, those whose results reach a Linear or convolution: only there can channels that they keep cost anything."""
    reaching: set[Node] = set()
    for node in reversed(traced.module.graph.nodes):
        if any(user in reaching or traced.target(user) in WEIGHTED for user in node.users):
            reaching.add(node)
    return [node for node in nodes if node in reaching]
