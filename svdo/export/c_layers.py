"""A plain sequential network as stages: each kind of layer, and how it joins those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import fx, nn

from ..errors import UserError
from .c_stages import Array, Chain, Pair, Pooling, Product, Shape, Stage, drop_unread, fused
from .graph import Select

IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def stages(network: nn.Module, shape: tuple[int, ...]) -> list[Stage]:
    """What ``network``, in evaluation mode, does to one input of ``shape``, (features,) or (channels, height, width).

    Raises:
        UserError: naming the layer that C cannot express, or whose parameters are not finite.
    """
    if len(shape) not in (1, 3):
        raise UserError(f"C is written for inputs of (features,) or (channels, height, width), not for one of shape {shape}")
    full: Shape = (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
    chain = Chain([], full, np.arange(math.prod(shape)).reshape(shape))
    for name, layer in _steps(network):
        _add(chain, name, layer)
    if not any(isinstance(stage, Product) for stage in chain.stages):
        raise UserError("the network has no Linear or Conv2d layer that C could be written from")
    if not chain.whole:
        raise UserError("the network ends by choosing among its outputs, which C cannot express; leave that step out")
    found = fused(chain.stages)
    drop_unread(found)
    return found


def _steps(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers in the order of the pass; a branch, or an operation that no layer stands for, is refused."""
    changing = (*IDLE, nn.BatchNorm1d, nn.BatchNorm2d)
    if any(layer.training and isinstance(layer, changing) for layer in network.modules()):
        raise UserError("the network is in training mode; call its eval() first")
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise UserError(
            f"the network's pass cannot be followed ({str(error).splitlines()[0]}); C is for plain chains"
        ) from None
    steps: list[tuple[str, nn.Module]] = []
    last: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if last is not None:
                raise UserError("the network takes several inputs, which C cannot express")
            last = node
            continue
        inputs = node.all_input_nodes
        if inputs != [last] or (node.op != "output" and len(node.users) != 1):
            raise UserError(f"layer {_name(node)} is part of a branch, which C cannot express: it is for plain chains")
        if node.op == "output":
            if node.args[0] is not last:
                raise UserError("the network returns more than one tensor, which C cannot express")
            break
        steps.append((_name(node), _layer(network, node)))
        last = node
    return steps


class _Tracer(fx.Tracer):
    """Stops at every module without children, whoever wrote it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential) and (super().is_leaf_module(m, module_qualified_name) or not any(m.children()))


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _layer(network: nn.Module, node: fx.Node) -> nn.Module:
    if node.op == "call_module":
        return network.get_submodule(str(node.target))
    if node.target in (F.relu, torch.relu, "relu"):
        return nn.ReLU()
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    if node.target in (torch.flatten, "flatten") and start == 1 and len(node.args) + len(node.kwargs) <= 2:
        return nn.Flatten()
    raise UserError(f"the step {node.name} is one that C cannot express; write it as a layer: ReLU, pooling, Flatten")


def _add(chain: Chain, name: str, layer: nn.Module) -> None:
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"layer {name} has a {key} that is not finite; nothing is written from it")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise UserError(f"layer {name} is in {str(value.dtype).removeprefix('torch.')}; C is written from float32")
    for kinds, add in _ADD:
        if type(layer) in kinds:
            add(chain, name, layer)
            return
    raise UserError(
        f"layer {name} is a {type(layer).__name__}, which C cannot express; it has Linear, Conv2d, BatchNorm, ReLU, MaxPool2d,"
        " AvgPool2d, Flatten"
    )


def _add_nothing(chain: Chain, name: str, layer: Any) -> None:
    """What evaluation passes through."""


def _add_flatten(chain: Chain, name: str, layer: nn.Flatten) -> None:
    if layer.start_dim != 1 or layer.end_dim not in (-1, chain.seen.ndim):
        raise UserError(f"layer {name} flattens part of the dimensions, which C cannot express")
    chain.seen = chain.seen.reshape(-1)


def _add_select(chain: Chain, name: str, layer: Select) -> None:
    if chain.seen.ndim != 1:
        raise UserError(f"layer {name} selects from something else than features, which C cannot express")
    index = layer.index.cpu().numpy()
    if len(np.unique(index)) < len(index):
        raise UserError(f"layer {name} selects a feature twice, which C cannot express")
    chain.seen = chain.seen[index]


def _add_linear(chain: Chain, name: str, layer: nn.Linear) -> None:
    weight = layer.weight.detach().numpy()
    _fit(name, chain.seen.ndim == 1 and chain.seen.size == weight.shape[1], f"{weight.shape[1]} features", chain)
    full = np.zeros((len(weight), math.prod(chain.source)), np.float32)
    full[:, chain.seen] = weight
    made = (len(weight), 1, 1)
    chain.add(Product(name, full.reshape(-1, *chain.source), _bias(layer), chain.source, made), (len(weight),))


def _add_conv(chain: Chain, name: str, layer: nn.Conv2d) -> None:
    _fit(name, chain.seen.ndim == 3 and len(chain.seen) == layer.in_channels, f"{layer.in_channels} channels", chain)
    if layer.padding_mode != "zeros":
        raise UserError(f"layer {name} pads with {layer.padding_mode}, which C cannot express")
    weight, channels = _ungrouped(layer), _seen_channels(chain, name)
    full = np.zeros((len(weight), chain.source[0], *weight.shape[2:]), np.float32)
    full[:, channels] = weight
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    sizes = [
        (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for size, before, after, dilation, kernel, stride in zip(
            chain.source[1:], (top, left), (bottom, right), layer.dilation, weight.shape[2:], layer.stride, strict=True
        )
    ]
    made = (len(weight), sizes[0], sizes[1])
    pair: Callable[[Any], Pair] = lambda value: (int(value[0]), int(value[1]))  # noqa: E731 - torch's tuples are of any length
    product = Product(
        name, full, _bias(layer), chain.source, made, pair(layer.stride), (int(top), int(left)), pair(layer.dilation)
    )
    chain.add(product, made)


def _ungrouped(layer: nn.Conv2d) -> Array:
    """(out, in, height, width): a group's filters are 0 on the other groups' channels."""
    weight = layer.weight.detach().numpy()
    outputs, inputs = len(weight) // layer.groups, weight.shape[1]
    full = np.zeros((len(weight), layer.in_channels, *weight.shape[2:]), np.float32)
    for group in range(layer.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full


def _seen_channels(chain: Chain, name: str) -> npt.NDArray[np.int64]:
    """Which of the source's channels the network sees, in its order."""
    area = math.prod(chain.source[1:])
    channels = chain.seen.reshape(len(chain.seen), -1)[:, 0] // area
    whole = (channels[:, None] * area + np.arange(area)).reshape(-1, *chain.source[1:])
    if not np.array_equal(whole, chain.seen):
        raise UserError(f"layer {name} reads parts of channels, which C cannot express")
    return channels


def _bias(layer: nn.Linear | nn.Conv2d) -> Array:
    if layer.bias is None:
        return np.zeros(len(layer.weight), np.float32)
    return layer.bias.detach().numpy().copy()


def _add_batch_norm(chain: Chain, name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    _fit(name, len(chain.seen) == layer.num_features, f"{layer.num_features} channels", chain)
    if layer.running_mean is None or layer.running_var is None:
        raise UserError(f"layer {name} keeps no running statistics, so its output depends on the batch: C cannot express it")
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.detach().double()
    shift = -layer.running_mean.double() * scale
    if layer.affine:
        shift = shift + layer.bias.detach().double()
    last = chain.stages[-1] if chain.stages else None
    channels = len(chain.seen) == chain.source[0]
    if not (isinstance(last, Product) and not last.relu and chain.whole and channels):
        last = _identity(chain, name)
    factor = scale.numpy()
    last.weight = (last.weight * factor[:, None, None, None]).astype(np.float32)
    last.bias = (last.bias * factor + shift.numpy()).astype(np.float32)


def _identity(chain: Chain, name: str) -> Product:
    """A product that changes nothing, for what has no product before it to be folded into."""
    shape = chain.seen.shape
    if len(shape) == 1:
        full = np.zeros((shape[0], math.prod(chain.source)), np.float32)
        full[np.arange(shape[0]), chain.seen] = 1.0
        product = Product(name, full.reshape(-1, *chain.source), np.zeros(shape[0], np.float32), chain.source, (shape[0], 1, 1))
    else:
        weight = np.zeros((shape[0], chain.source[0], 1, 1), np.float32)
        weight[np.arange(shape[0]), _seen_channels(chain, name)] = 1.0
        made = (shape[0], *chain.source[1:])
        product = Product(name, weight, np.zeros(shape[0], np.float32), chain.source, made)
    chain.add(product, shape)
    return product


def _add_relu(chain: Chain, name: str, layer: nn.ReLU) -> None:
    if not chain.stages:
        _identity(chain, name)
    chain.stages[-1].relu = True


def _add_pool(chain: Chain, name: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> None:
    if chain.seen.ndim != 3:
        raise UserError(f"layer {name} pools something else than (channels, height, width), which C cannot express")
    if getattr(layer, "return_indices", False):
        raise UserError(f"layer {name} returns indices, which C cannot express")
    if not chain.whole:
        _identity(chain, name)
    with torch.no_grad():
        made = layer(torch.zeros(1, *chain.source)).shape[1:]
    average = isinstance(layer, nn.AvgPool2d)
    pooling = Pooling(
        name,
        "average" if average else "max",
        chain.source,
        (int(made[0]), int(made[1]), int(made[2])),
        _pair(layer.kernel_size),
        _pair(layer.stride),
        _pair(layer.padding),
    )
    if isinstance(layer, nn.AvgPool2d):
        pooling.counts_padding, pooling.divisor = layer.count_include_pad, layer.divisor_override or 0
    else:
        pooling.dilation = _pair(layer.dilation)
    chain.add(pooling, pooling.shape)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _fit(name: str, fits: bool, wanted: str, chain: Chain) -> None:
    if not fits:
        raise UserError(f"layer {name} takes {wanted} but gets {tuple(chain.seen.shape)}; is the example of the right shape?")


_ADD: list[tuple[tuple[type[nn.Module], ...], Callable[[Chain, str, Any], None]]] = [
    (IDLE, _add_nothing),
    ((nn.Flatten,), _add_flatten),
    ((Select,), _add_select),
    ((nn.Linear,), _add_linear),
    ((nn.Conv2d,), _add_conv),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _add_batch_norm),
    ((nn.ReLU,), _add_relu),
    ((nn.MaxPool2d, nn.AvgPool2d), _add_pool),
]
