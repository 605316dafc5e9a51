"""Chains of layers: a traced network as a ``Sequential``, and such a one as plain JSON and back; nothing is executed."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from ..errors import UserError
from . import graph
from .graph import Select, Traced

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

# Kind of layer -> the arguments that make it, each also an attribute; "bias" and "features" are looked at below.
LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv1d: (*_CONVOLUTION, "bias"),
    nn.Conv2d: (*_CONVOLUTION, "bias"),
    nn.Conv3d: (*_CONVOLUTION, "bias"),
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.BatchNorm3d: _NORM,
    nn.MaxPool1d: _MAX_POOL,
    nn.MaxPool2d: _MAX_POOL,
    nn.AvgPool1d: _AVERAGE,
    nn.AvgPool2d: _AVERAGE,
    nn.AdaptiveAvgPool1d: ("output_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Hardswish: (),
    nn.Hardsigmoid: (),
    nn.Identity: (),
    nn.Dropout: ("p",),
    nn.Dropout2d: ("p",),
    Select: ("features",),
}
_KINDS = {kind.__name__: kind for kind in LAYERS}
MAX_LAYERS = 10_000

Layer = list[Any]  # [name, kind, arguments], or [name, "Sequential", [layers]]


def as_sequential(traced: Traced) -> nn.Sequential | None:
    """The graph as a chain of modules where it is one, else None; functional dropout is left out."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    previous: Node | None = None
    for node in traced.module.graph.nodes:
        if node.op == "output":
            return nn.Sequential(layers) if node.args[0] is previous else None
        if node.op == "placeholder":
            if previous is not None:
                return None
        else:
            if node.all_input_nodes != [previous] or node.op == "get_attr" or node not in traced.shapes:
                return None
            module = _as_module(traced, node)
            if module is None:
                return None
            if any(module is layer for layer in layers.values()):
                if module.state_dict():
                    return None
                module = copy.deepcopy(module)  # one ReLU in several places
            if not graph.silent_dropout(node):
                name = str(node.target).replace(".", "_") if node.op == "call_module" else node.name
                layers[node.name if name in layers else name] = module
        previous = node
    return None


def _as_module(traced: Traced, node: Node) -> nn.Module | None:
    if node.op == "call_module":
        module: nn.Module = traced.layer(node)
        return module
    if graph.kind(traced, node) == "flatten":
        return nn.Flatten()
    if graph.silent_dropout(node):
        return nn.Identity()
    if node.target in (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"):
        return nn.ReLU()
    made: dict[Any, Callable[..., nn.Module]] = {
        F.max_pool2d: nn.MaxPool2d,
        F.avg_pool2d: nn.AvgPool2d,
        F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
        torch.sigmoid: nn.Sigmoid,
        torch.tanh: nn.Tanh,
    }
    try:
        return made[node.target](*node.args[1:], **node.kwargs)
    except (KeyError, TypeError):
        return None


def describe(network: nn.Module) -> list[Layer] | None:
    """The layers of a ``Sequential`` (of such), in order, as JSON values; None where one is of another kind, or hooked."""
    if type(network) is not nn.Sequential:
        return None
    layers: list[Layer] = []
    for name, layer in network.named_children():
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return None
        if type(layer) is nn.Sequential:
            inner = describe(layer)
            if inner is None:
                return None
            layers.append([name, "Sequential", inner])
        elif type(layer) in LAYERS:
            layers.append([name, type(layer).__name__, _arguments(layer)])
        else:
            return None
    distinct = {id(layer) for layer in network.children()}
    return layers if len(distinct) == len(network) else None  # one layer in two places would come apart


def _arguments(layer: nn.Module) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for key in LAYERS[type(layer)]:
        if key == "bias":
            arguments[key] = layer.bias is not None
        elif key == "features":
            arguments[key] = len(layer.index)  # type: ignore[arg-type]
        else:
            arguments[key] = getattr(layer, key)
    return arguments


def build(layers: Any) -> nn.Sequential:
    """The network of a description, on the meta device: with shapes but without memory for its weights.

    Raises:
        UserError: where the description is none, names an unknown kind of layer or makes no layer.
    """
    try:
        with torch.device("meta"):
            return _build(layers, [MAX_LAYERS]).eval()
    except UserError:
        raise
    except Exception as error:  # a layer's own check of its arguments can fail in any way
        raise UserError(f"its description of the network makes none ({str(error).splitlines()[0][:100]})") from None


def _build(layers: Any, left: list[int]) -> nn.Sequential:
    made: OrderedDict[str, nn.Module] = OrderedDict()
    for name, kind, arguments in layers:
        left[0] -= 1
        if left[0] < 0 or not isinstance(name, str) or name in made:
            raise ValueError("its layers are not told apart, or too many")
        if kind == "Sequential":
            made[name] = _build(arguments, left)
            continue
        if kind not in _KINDS:
            raise UserError(f"it has a layer of kind {str(kind)[:40]}, which this version of svdo does not know")
        cls = _KINDS[kind]
        if not isinstance(arguments, dict) or arguments.keys() != set(LAYERS[cls]):
            raise ValueError(f"{kind} does not take these arguments")
        made[name] = _layer(cls, {key: _value(value) for key, value in arguments.items()})
    return nn.Sequential(made)


def _layer(cls: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    if cls is Select:
        return Select(torch.empty(arguments["features"], dtype=torch.long))
    return cls(**arguments)


def _value(value: Any) -> Any:
    """A number, a word or a tuple of numbers: nothing else is an argument."""
    if isinstance(value, list):
        return tuple(_value(part) for part in value)
    plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    if not plain:
        raise ValueError(f"{str(value)[:40]} is no argument of a layer")
    return value
