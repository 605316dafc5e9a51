"""Which channels of a network's tensors are constant, and which are needed.

Each channel of each tensor gets a number, and channels that can only go together (those that an addition adds, a depthwise
convolution's input and output) get the same. Forwards, a channel's value is followed while it is constant; backwards, from the
network's outputs, a channel is needed where a weight other than 0 of a needed channel reads it and it is not constant.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from . import graph
from .graph import Traced


@dataclass
class Channels:
    """A tensor's channels, along ``axis``: their numbers, and their values, NaN where not constant; both (channels,)."""

    axis: int
    ids: Tensor
    values: Tensor


@dataclass
class Weights:
    """A layer's weight as (out, in per group): where it is not 0 at any position, and its sum over positions."""

    nonzero: Tensor
    sums: Tensor
    padded: bool = False
    groups: int = 1
    standing: int | None = None  # of a padded convolution: the constant input channel that stays and stands for all of them


class Analysis:
    """Which channels of each tensor of a graph, on the CPU, are needed; ``kept`` answers."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.channels: dict[Node, Channels] = {}
        self.weights: dict[Node, Weights] = {}
        self.left: dict[Node, str] = {}  # operations at which all channels stay, with the reason
        self._parents: list[int] = []
        self._whole: list[Tensor] = []  # numbers of channels that are needed whatever reads them
        self.sources: dict[Node, Channels] = {}  # what a layer with weights reads
        self._fixed = self._fixed_modules()
        with torch.no_grad():
            for node in traced.module.graph.nodes:
                self._visit(node)
            self.roots = torch.tensor([self._root(number) for number in range(len(self._parents))], dtype=torch.long)
            self.needed = torch.zeros(len(self._parents), dtype=torch.bool)
            self._find_needed()

    def kept(self, channels: Channels) -> Tensor:
        """Boolean, (channels,): which of them the smaller network still computes."""
        return self.needed[self.roots[channels.ids]]

    def notes(self) -> list[str]:
        """One line for each kind of operation that was not followed and that a layer comes after."""
        found: dict[str, list[str]] = {}
        for node in graph.before_a_layer(self.traced, self.left):
            found.setdefault(self.left[node], []).append(node.name)
        return [f"all channels stay around {reason}: {_listed(names)}" for reason, names in found.items()]

    def _fixed_modules(self) -> set[str]:
        """Names of modules that cannot be narrowed: called in several places, or their parameters are read directly."""
        nodes = list(self.traced.module.graph.nodes)
        calls = {str(node.target): self.traced.layer(node) for node in nodes if node.op == "call_module"}
        counts = Counter(self.traced.layer(node) for node in nodes if node.op == "call_module")
        several = {name for name, layer in calls.items() if counts[layer] > 1 and layer.state_dict()}
        read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
        return several | read

    # Forwards: numbers and constants.

    def _new(self, count: int) -> Tensor:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _tie(self, first: Tensor, second: Tensor) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self._root(a)] = self._root(b)

    def _visit(self, node: Node) -> None:
        if node not in self.traced.shapes:
            known = [(len(self.traced.shapes[other]), self.channels[other].axis) for other in self.traced.inputs(node)]
            if node.op == "output" or any(graph.reads_channel_count(node, rank, axis) for rank, axis in known):
                self._leave(node, narrow=True)
            return
        rule = getattr(self, "_" + graph.kind(self.traced, node).replace(" ", "_"), None)
        narrow = node.op != "call_module" or str(node.target) not in self._fixed
        channels = rule(node) if rule and narrow else None
        shape = self.traced.shapes[node]
        if channels is None or len(channels.ids) != shape[channels.axis]:
            self._leave(node, narrow)
            channels = self._dense(shape, 1 if len(shape) > 1 else 0)
        self.channels[node] = channels

    def _leave(self, node: Node, narrow: bool) -> None:
        """An operation that is not followed needs all of what it reads."""
        self._whole.extend(self.channels[other].ids for other in self.traced.inputs(node))
        if self.traced.inputs(node) and node.op != "output":
            self.left[node] = self._reason(node, narrow)

    def _dense(self, shape: torch.Size, axis: int) -> Channels:
        """The channels along that axis, unknown and all needed."""
        ids = self._new(shape[axis] if shape else 1)
        self._whole.append(ids)
        return Channels(axis, ids, torch.full((len(ids),), math.nan))

    def _reason(self, node: Node, narrow: bool) -> str:
        target = self.traced.target(node)
        name = getattr(target, "__name__", str(target))
        if target is None:
            return f"the hooked {type(self.traced.layer(node)).__name__}"
        return name if narrow else f"the {name} that is used in several places"

    def _source(self, node: Node) -> Channels:
        return self.channels[self.traced.inputs(node)[0]]

    def _read_along(self, node: Node, axis: int) -> Channels:
        """What a layer with weights reads: its input's channels, if they lie along that axis; else all there is."""
        source = self._source(node)
        if source.axis != axis:
            self._whole.append(source.ids)
            source = self._dense(self.traced.shapes[self.traced.inputs(node)[0]], axis)
        self.sources[node] = source
        return source

    def _linear(self, node: Node) -> Channels:
        layer, last = self.traced.layer(node), len(self.traced.shapes[node]) - 1
        source = self._read_along(node, last)
        self.weights[node] = weights = Weights(layer.weight != 0, layer.weight)
        return Channels(last, self._new(layer.out_features), self._constants(weights, layer.bias, source))

    def _convolution(self, node: Node) -> Channels | None:
        layer = self.traced.layer(node)
        if len(self.traced.shapes[node]) != layer.weight.dim():  # an image without a batch axis
            return None
        source = self._read_along(node, 1)
        weight = layer.weight.flatten(2)
        nonzero, padded = weight.ne(0).any(2), graph.pads_with_zeros(layer)
        self.weights[node] = weights = Weights(nonzero, weight.sum(2), padded, layer.groups)
        if padded and layer.groups == 1:
            weights.standing = _largest(source.values.nan_to_num() * nonzero.any(0))
        ids = self._new(layer.out_channels)
        if layer.groups > 1:  # a group goes as a whole: its inputs and its outputs are tied together
            for inputs, outputs in zip(source.ids.chunk(layer.groups), ids.chunk(layer.groups), strict=True):
                group = torch.cat([inputs, outputs])
                self._tie(group[1:], group[:-1])
        return Channels(1, ids, self._constants(weights, layer.bias, source))

    def _constants(self, weights: Weights, bias: Tensor | None, source: Channels) -> Tensor:
        """The outputs' values, (out,), where a layer's inputs do not move them."""
        groups = (weights.groups, -1)
        values = source.values.to(weights.sums).unflatten(0, groups)
        moving = values.isnan() | (weights.padded & (values != 0))
        constant = (weights.sums.unflatten(0, groups) @ values.nan_to_num().unsqueeze(2)).flatten()
        if bias is not None:
            constant = constant + bias
        constant[(weights.nonzero.unflatten(0, groups) & moving.unsqueeze(1)).any(2).flatten()] = math.nan
        return _finite(constant)

    def _norm(self, node: Node) -> Channels | None:
        source = self._source(node)
        return self._applied(node, [source]) if source.axis == 1 else None

    def _elementwise(self, node: Node) -> Channels | None:
        inputs = self.traced.inputs(node)
        sources = [self.channels[other] for other in inputs]
        shape, first = self.traced.shapes[node], sources[0]
        if len(inputs) != len(node.all_input_nodes) or any(len(self.traced.shapes[other]) != len(shape) for other in inputs):
            return None
        if any(source.axis != first.axis or len(source.ids) != len(first.ids) for source in sources):
            return None
        for other in sources[1:]:
            self._tie(first.ids, other.ids)
        result = self._applied(node, sources)
        if self.traced.target(node) in graph.PRODUCTS:
            zero = torch.stack([source.values == 0 for source in sources]).any(0)
            result.values[zero] = 0.0
        return result

    def _applied(self, node: Node, sources: list[Channels]) -> Channels:
        """The operation itself, on one value for each channel."""
        first, rank = sources[0], len(self.traced.shapes[node])
        shape = [-1 if axis == first.axis else 1 for axis in range(rank)]
        stand_ins = {
            other: source.values.reshape(shape).clone() for other, source in zip(self.traced.inputs(node), sources, strict=True)
        }
        if node.op == "call_module" and (state := list(self.traced.layer(node).parameters())):
            stand_ins = {other: values.to(state[0].dtype) for other, values in stand_ins.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda other: stand_ins[other])
        if node.op == "call_module":
            values = self.traced.layer(node)(*args, **kwargs)
        elif node.op == "call_method":
            values = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            values = node.target(*args, **kwargs)  # type: ignore[operator]
        values = values.reshape(-1).clone()
        values[torch.stack([source.values.isnan() for source in sources]).any(0)] = math.nan
        return Channels(first.axis, first.ids, _finite(values))

    def _over_positions(self, node: Node) -> Channels | None:
        source = self._source(node)
        if source.axis != 1 or len(self.traced.shapes[self.traced.inputs(node)[0]]) < 3:
            return None
        values = source.values.clone()
        if graph.averages_with_zeros(self.traced, node):
            values[values != 0] = math.nan
        return Channels(1, source.ids, values)

    def _flatten(self, node: Node) -> Channels | None:
        source = self._source(node)
        if source.axis != 1:
            return None
        positions = self.traced.shapes[node][1] // len(source.ids)
        return Channels(1, source.ids.repeat_interleave(positions), source.values.repeat_interleave(positions))

    def _select(self, node: Node) -> Channels | None:
        source, index = self._source(node), self.traced.layer(node).index
        if source.axis != len(self.traced.shapes[node]) - 1:
            return None
        return Channels(source.axis, source.ids[index], source.values[index])

    def _concatenation(self, node: Node) -> Channels | None:
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        sources = [self.channels[other] for other in tensors]
        if any(source.axis != 1 for source in sources):
            return None
        return Channels(1, torch.cat([s.ids for s in sources]), torch.cat([s.values for s in sources]))

    # Backwards: what is needed.

    def _find_needed(self) -> None:
        for ids in self._whole:
            self._need(ids)
        self._settle()
        for node in self.weights:  # a layer without outputs is none: where nothing is needed of it, one unit stays
            if not self.kept(self.channels[node]).any():
                self._need(self.channels[node].ids[:1])
        self._settle()

    def _need(self, ids: Tensor) -> None:
        self.needed[self.roots[ids]] = True

    def _settle(self) -> None:
        """Follow the layers backwards until nothing more is needed."""
        count = -1
        while count != int(self.needed.sum()):
            count = int(self.needed.sum())
            for node in reversed(self.weights):
                self._need_inputs(node)

    def _need_inputs(self, node: Node) -> None:
        """Of a layer without groups, what its needed outputs read; with groups, inputs and outputs are tied as it is."""
        weights, source = self.weights[node], self.sources[node]
        if weights.groups > 1:
            return
        read = weights.nonzero[self.kept(self.channels[node])].any(0)
        moving = source.values.isnan()
        self._need(source.ids[read & moving])
        if weights.standing is not None and (read & ~moving & (source.values != 0)).any():
            self._need(source.ids[weights.standing : weights.standing + 1])


def _finite(values: Tensor) -> Tensor:
    """What is infinite counts as not known: it could not be folded."""
    return values.where(values.isfinite(), math.nan)


def _largest(values: Tensor) -> int | None:
    """The place of the value farthest from 0, or None where all are 0."""
    return int(values.abs().argmax()) if values.any() else None


def _listed(names: list[str]) -> str:
    """The first three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
