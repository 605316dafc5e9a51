"""Any ``nn.Module`` -> the same module with a method's noisy layers, weights kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from .config import UserError, require
from .layers import NOISY, NoisyLayer, noisy_layers, weight_layers
from .methods import Method, find


def convert(
    module: nn.Module,
    method: str | Method,
    *,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    **settings: Any,
) -> nn.Module:
    """Give a network a method: each Linear and Conv2d becomes its noisy counterpart, with the same parameters.

    Args:
        module: any network; it is not changed, the result is a converted copy in the same mode.
        method: a method's name ("sparsevd", "vd_b", "binary", ...) or a ``Method`` with its settings.
        include: shell patterns of the dotted layer names to convert.
        exclude: shell patterns of the layer names to leave plain; it wins over ``include``.
        **settings: the method's fields, where ``method`` is a name, such as ``threshold=2.5`` or ``rates={"fc*": 0.3}``.

    Returns:
        The converted copy. Train it with ``cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train``.

    Raises:
        UserError: on an unknown method, field or value; on a layer that is noisy already; where no layer matches, or none
            matches a pattern of the method's settings; or on a subclass of Linear or Conv2d, whose behaviour a noisy layer
            would silently drop (exclude it).
    """
    if isinstance(method, str):
        cls = find(method)
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        for key in settings:
            choices = ", ".join(fields) or "none"
            require(key in fields, f"method {method} has no field {key}; its fields are: {choices}")
        method = cls(**settings)
    elif settings:
        raise UserError("settings go into the Method itself, or beside a method's name, not both")
    method.check()
    if any(noisy_layers(module)):
        raise UserError("the module has noisy layers already; convert the plain network")
    include, exclude = ((part,) if isinstance(part, str) else tuple(part) for part in (include, exclude))
    converted = copy.deepcopy(module)
    chosen = [
        (name, layer) for name, layer in weight_layers(converted) if _matches(name, include) and not _matches(name, exclude)
    ]
    if not chosen:
        raise UserError("no Linear or Conv2d layer of the module matches include and exclude")
    candidates = {name: _twin(layer, name) for name, layer in chosen}
    method.check_patterns(candidates)
    with torch.random.fork_rng(devices=[]):
        noises = method.noises(candidates)
    twins: dict[int, nn.Module] = {}
    for name, layer in chosen:
        twin, noise = candidates[name], noises[name]
        twins[id(layer)] = layer
        if noise is not None:
            twin.noise = noise.to(device=layer.weight.device, dtype=layer.weight.dtype)
            twin.noise.train(layer.training)
            twins[id(layer)] = twin
    return _replaced(converted, twins)


def plain(module: nn.Module) -> nn.Module:
    """The network that evaluation uses, made of torch's own layers: to be exported, or used where svdo is not.

    Args:
        module: a converted network; it is not changed.

    Returns:
        A copy in the same mode whose noisy layers are Linear and Conv2d again, under their old names, with the weights of
        ``evaluation_weights``, 0 where removed. The methods' noise is gone from it, in training mode too.
    """
    result = copy.deepcopy(module)
    twins: dict[int, nn.Module] = {}
    for _, layer in noisy_layers(result):
        cls = next(kind for kind, noisy in NOISY.items() if isinstance(layer, noisy))
        twin = cls.__new__(cls)
        own = {key: value for key, value in layer.__dict__.items() if key not in ("sampling", "variance_dtype")}
        others = {name: child for name, child in layer._modules.items() if child is not layer.noise}
        twin.__dict__ = own | {"_modules": others, "_parameters": dict(layer._parameters)}
        twin.weight = nn.Parameter(layer.pruned_weight().detach().clone(), layer.weight.requires_grad)
        twins[id(layer)] = twin
    return _replaced(result, twins)


def _replaced(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    """``module`` with other layers in the places of those whose ids ``twins`` has."""
    if id(module) in twins:
        return twins[id(module)]
    for parent in list(module.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in twins:
                setattr(parent, child_name, twins[id(child)])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # torch's fast path of evaluation would read the weights past the layers
    return module


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _twin(layer: nn.Linear | nn.Conv2d, name: str) -> NoisyLayer:
    if type(layer) not in NOISY:
        raise UserError(f"layer {name} is a {type(layer).__name__}, which cannot be converted; exclude it by name")
    cls = NOISY[type(layer)]
    twin = cls.__new__(cls)
    # The twin shares the layer's whole state (parameters, hooks, mode, hyper-parameters): nothing to list, nothing to miss; but
    # a noise added to the one is not one of the other.
    twin.__dict__ = dict(layer.__dict__) | {"_modules": dict(layer._modules)}
    return twin


def kl(module: nn.Module) -> torch.Tensor:
    """KL(q || p) of the whole network, a scalar in nats: the sum over its noisy layers, 0 where there is none.

    For a mean cross-entropy over minibatches add ``kl_weight * kl(module) / n_train`` to the loss.
    """
    terms = [layer.kl() for _, layer in noisy_layers(module)]
    if not terms:
        return torch.zeros((), device=next((p.device for p in module.parameters()), None))
    return torch.stack(terms).sum()


def advance(module: nn.Module, step: int, steps: int) -> None:
    """Tell the noisy layers how far training has come: methods with phases (pruning and its like) act on it.

    Args:
        module: a converted network.
        step: how many steps of training are done; call before each step and, with ``step == steps``, after the last.
        steps: the number of all steps.
    """
    with torch.no_grad():
        for _, layer in noisy_layers(module):
            layer.noise.advance(layer.weight, step, steps)
