"""The physically smaller network: units that compute a constant, or that nobody reads, are taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from ..conversion import plain
from ..errors import UserError
from . import architecture, graph
from .analysis import Analysis, Weights
from .graph import Select, Traced


@dataclass(frozen=True)
class Size:
    """Multiply-adds per item of the batch, parameters, and bytes of parameters and buffers."""

    macs: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class LayerChange:
    """A Linear or convolution: the shape of its weight before and after."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Compacted:
    """What ``compact`` made: the network, its size before and after, its layers' sizes, and what it left as it was."""

    module: nn.Module
    before: Size
    after: Size
    layers: list[LayerChange]
    notes: list[str]

    def __str__(self) -> str:
        """Sizes and notes, one a line."""
        changed = [f"{layer.name}: {_times(layer.before)} -> {_times(layer.after)}" for layer in self.layers]
        totals = [
            f"{label}: {was:,} -> {now:,}".replace(",", " ")
            for label, was, now in (
                ("multiply-adds", self.before.macs, self.after.macs),
                ("parameters", self.before.parameters, self.after.parameters),
                ("bytes", self.before.bytes, self.after.bytes),
            )
        ]
        return "\n".join(changed + totals + self.notes)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def compact(module: nn.Module, example: Any) -> Compacted:
    """Take out of a network what its zeros have made superfluous; in evaluation its outputs stay what they were.

    A unit whose value is constant is folded into the next layer's bias, and one that no weight other than 0 reads is dropped.
    Where zero padding makes a constant channel vary at the border, one such channel is kept for all. Channels that an addition
    ties together go together, and so does a group of a grouped convolution. A dense layer that reads part of a flattened tensor
    gets a ``Select`` in front.

    Args:
        module: a converted network, or a plain one with zeros; it is not changed.
        example: an input of the network, or a tuple of them, with a batch axis in front; a network that computes sizes as it
            goes is followed for this size.

    Returns:
        The smaller network with its report. It is made of torch's own layers, in evaluation mode: a ``torch.nn.Sequential``
        where the network is a chain of layers, else a ``torch.fx.GraphModule``. At operations that are not known, all channels
        stay, and ``notes`` says where.

    Raises:
        UserError: where torch.fx cannot trace the network, where the network does not run on the example, or where the smaller
            network would compute something else.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    network = plain(module).eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network, inputs = network.cpu(), tuple(part.cpu() if isinstance(part, Tensor) else part for part in inputs)
    traced = graph.trace(network, inputs)
    before, layers = _size(traced), _weights(traced)
    expected = _outputs(network, inputs)
    small, size, after = traced, None, before
    while after != size:  # once more: where one of several groups is left, its channels can go one by one
        analysis, size = Analysis(small), after
        _Rebuilding(analysis).run()
        small = Traced(small.module, graph.shapes(small.module, inputs))
        after = _size(small)
    _compare(expected, _outputs(small.module, inputs))
    now = _weights(small)
    changes = [LayerChange(name, shape, now[name]) for name, shape in layers.items()]
    notes = analysis.notes()
    if all(change.before == change.after for change in changes):
        notes.append("no unit died: no layer is smaller than before")
    smaller = architecture.as_sequential(small) or small.module
    return Compacted(smaller.eval().to(device), before, after, changes, notes)


def _weights(traced: Traced) -> dict[str, tuple[int, ...]]:
    return {
        str(node.target): tuple(traced.layer(node).weight.shape)
        for node in traced.module.graph.nodes
        if node.op == "call_module" and isinstance(traced.layer(node), graph.WEIGHTED)
    }


def _size(traced: Traced) -> Size:
    macs = 0
    for node in traced.module.graph.nodes:
        if node.op == "call_module" and isinstance(traced.layer(node), graph.WEIGHTED):
            shape, weight = traced.shapes[node], traced.layer(node).weight
            macs += weight.numel() * math.prod(shape[1:]) // len(weight)
    parameters = list(traced.module.parameters())
    return Size(
        macs=macs,
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(t.numel() * t.element_size() for t in [*parameters, *traced.module.buffers()]),
    )


@torch.no_grad()
def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a network that draws in evaluation draws the same both times
        outputs = network(*graph.copied(inputs))
    tensors: list[Tensor] = []
    fx.node.map_aggregate(outputs, lambda leaf: tensors.append(leaf) if isinstance(leaf, Tensor) else None)
    return tensors


def _compare(expected: list[Tensor], found: list[Tensor]) -> None:
    """A graph can miss what a network does, such as writing into a view of a tensor, so its answers are looked at."""
    for was, now in zip(expected, found, strict=True):
        if not was.is_floating_point():
            continue
        scale = float(was.abs().nan_to_num(0.0, 0.0, 0.0).amax()) if was.numel() else 0.0
        tolerance = min(1000.0 * torch.finfo(was.dtype).eps, 0.05)
        if not torch.allclose(was, now, rtol=0.0, atol=tolerance * (scale or 1.0), equal_nan=True):
            raise UserError(
                "the network does something that compact cannot follow: the smaller one computes other outputs for the example;"
                " compact the part of it that is made of ordinary layers"
            )


class _Rebuilding:
    """Narrows the modules of a graph, in place, to the channels that an analysis keeps."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.traced = analysis, analysis.traced

    @torch.no_grad()
    def run(self) -> None:
        """Narrow everything."""
        network = self.traced.module.graph
        for node in list(network.nodes):
            if node not in self.traced.shapes or node in self.analysis.left:
                continue
            kind = graph.kind(self.traced, node)
            if kind == "linear":
                self._linear(node)
            elif kind == "convolution":
                self._convolution(node)
            elif kind == "norm":
                self._norm(node)
            elif kind == "select":
                self._narrow_select(node)
            elif kind == "flatten" and node.op != "call_module":
                self._flatten(node)
        self.traced.module.recompile()

    def _flatten(self, node: Node) -> None:
        """A view may name the number of features, which is another now."""
        source = self.traced.inputs(node)[0]
        node.op, node.target = "call_function", torch.flatten
        node.args, node.kwargs = (source, 1), {}

    def _norm(self, node: Node) -> None:
        layer, kept = self.traced.layer(node), self.analysis.kept(self.analysis.channels[node])
        for key in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, key)
            if tensor is not None:
                _replace(layer, key, tensor[kept])
        layer.num_features = int(kept.sum())

    def _linear(self, node: Node) -> None:
        layer, source = self.traced.layer(node), self.analysis.sources[node]
        weights, (rows, columns) = self.analysis.weights[node], self._cut(node)
        moving = source.values.isnan()
        read = columns & moving & weights.nonzero[rows].any(0)
        if not read.any():
            read[int(columns.nonzero()[0])] = True
        self._fold(layer, weights, rows, source.values, ~read & ~moving)
        _replace(layer, "weight", layer.weight[rows][:, read])
        layer.in_features, layer.out_features = int(read.sum()), int(rows.sum())
        if int(columns.sum()) > int(read.sum()):
            self._select(node, read[columns].nonzero().flatten())

    def _narrow_select(self, node: Node) -> None:
        """Its index counts the features that are still there, and leaves out what is not."""
        layer, channels = self.traced.layer(node), self.analysis.channels
        places = self.analysis.kept(channels[self.traced.inputs(node)[0]]).cumsum(0) - 1
        layer.index = places[layer.index][self.analysis.kept(channels[node])]

    def _select(self, node: Node, index: Tensor) -> None:
        source = self.traced.inputs(node)[0]
        if self.traced.target(source) is Select and len(source.users) == 1:
            self.traced.layer(source).index = self.traced.layer(source).index[index]
            return
        name = f"{node.target}_inputs"
        self.traced.module.add_submodule(name, Select(index))
        with self.traced.module.graph.inserting_before(node):
            node.replace_input_with(source, self.traced.module.graph.call_module(name, (source,)))

    def _convolution(self, node: Node) -> None:
        layer, values = self.traced.layer(node), self.analysis.sources[node].values
        weights, (rows, columns) = self.analysis.weights[node], self._cut(node)
        gone = ~columns & ~values.isnan()
        weight = layer.weight[rows]
        if weights.groups > 1:  # all that is read of a group that stays has stayed
            layer.groups = int(columns.sum()) // weight.shape[1]
            gone = torch.zeros_like(gone)
        else:
            if weights.standing is not None:
                ratios = (values / values[weights.standing]).to(weight).nan_to_num() * gone
                weight[:, weights.standing] += torch.einsum("oi...,i->o...", weight, ratios)
            weight = weight[:, columns]
        self._fold(layer, weights, rows, values, gone & (not weights.padded))
        _replace(layer, "weight", weight)
        layer.in_channels, layer.out_channels = int(columns.sum()), int(rows.sum())

    def _cut(self, node: Node) -> tuple[Tensor, Tensor]:
        """Which of a layer's outputs and inputs stay."""
        analysis = self.analysis
        return analysis.kept(analysis.channels[node]), analysis.kept(analysis.sources[node])

    def _fold(self, layer: Any, weights: Weights, rows: Tensor, values: Tensor, constants: Tensor) -> None:
        """Keep the bias of ``rows``, with what the input channels ``constants`` have always given them."""
        bias = None if layer.bias is None else layer.bias[rows]
        sums = weights.sums[rows]
        if constants.any() and bool(sums[:, constants].any()):
            given = sums[:, constants].double() @ values[constants].double()
            bias = (given if bias is None else bias.double() + given).to(layer.weight.dtype)
        if bias is not None:
            _replace(layer, "bias", bias)


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    """Set a parameter or buffer; what was a parameter stays one, as frozen as it was."""
    before = getattr(module, key)
    value = value.contiguous()
    if isinstance(before, nn.Parameter) or key == "bias":
        value = nn.Parameter(value, before is None or before.requires_grad)
    setattr(module, key, value)
