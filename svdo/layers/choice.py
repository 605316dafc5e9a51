"""Which layers of a network can be made noisy, which are refused and why, and which weights are left dense."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune

from ..errors import UserError, require
from .base import NoisyLayer, why_not
from .network import noisy_layers, weight_layers
from .noise import Noise


def patterns(key: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """The patterns of an ``include`` or ``exclude``; a string may hold several, with commas between them."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    require(all(isinstance(part, str) for part in found), f"{key}={value!r} must be a pattern or a list of patterns")
    outside_brackets = r",(?![^\[]*\])"
    return tuple(piece.strip() for part in found for piece in re.split(outside_brackets, part))


def matches(names: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether a pattern matches one of a layer's names or the name of a module around it."""
    parts = (name.split(".") for name in names)
    around = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
    return any(fnmatchcase(name, pattern) for name in around for pattern in wanted)


def choose(
    module: nn.Module, kinds: Collection[type], include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The Linear and Conv2d layers that ``include`` and ``exclude`` leave, by their first name.

    An attention's output projection is never among them: attention reads its weight and does not call it.

    Raises:
        UserError: where there is none, where a pattern matches nothing, or on layers that cannot be converted to ``kinds``, all
            in one message.
    """
    names: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    layers = [
        (names[id(layer)], layer) for _, layer in weight_layers(module) if type(layer) is not NonDynamicallyQuantizableLinear
    ]
    require(bool(layers), "no Linear or Conv2d layer in the module")
    others = [names[id(part)] for part, *_ in _own_weights(module)]
    for key, wanted, known in (
        ("include", include, [found for found, _ in layers]),
        ("exclude", exclude, [found for found, _ in layers] + others),
    ):
        for pattern in wanted:
            require(
                any(matches(found, [pattern]) for found in known),
                f"{key}={pattern} matches no Linear or Conv2d layer; take names or patterns of:"
                f" {', '.join(found[0] for found, _ in layers)}",
            )
    chosen = {found[0]: layer for found, layer in layers if matches(found, include) and not matches(found, exclude)}
    require(bool(chosen), "no Linear or Conv2d layer of the module matches include and exclude")
    _refuse(chosen, kinds)
    return chosen


def _refuse(layers: Mapping[str, nn.Linear | nn.Conv2d], kinds: Collection[type]) -> None:
    refused: dict[str, list[str]] = {}
    for name, layer in layers.items():
        reason = _reason(layer, kinds)
        if reason is not None:
            refused.setdefault(reason, []).append(name)
    if not refused:
        return
    if "" in layers:
        raise UserError(f"the module is {next(iter(refused))}")
    said = [
        f"layers {','.join(names)} are each {reason}" if len(names) > 1 else f"layer {names[0]} is {reason}"
        for reason, names in refused.items()
    ]
    every = [name for names in refused.values() for name in names]
    raise UserError(f"{'; '.join(said)}; or leave out all that cannot be converted with exclude={every}")


def _reason(layer: nn.Linear | nn.Conv2d, kinds: Collection[type]) -> str | None:
    """Why a layer cannot be converted, or None."""
    kind = full_name(type(layer))
    if "weight" in layer._parameters and layer._parameters["weight"] is None:
        return f"a {kind} whose weight is None"
    if is_lazy(layer._parameters.get("weight")):  # type: ignore[arg-type]
        return f"a {kind} without a weight yet; run a batch through the network first"
    if prune.is_pruned(layer):
        return f"a {kind} pruned by torch.nn.utils.prune; make that permanent with prune.remove(layer, 'weight')"
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        base = next(full_name(base) for base in type(layer).__mro__ if not base.__name__.startswith("Parametrized"))
        return (
            f"a {base} whose weight a hook or parametrization makes, which cannot be converted; take that away first"
            " (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, remove_spectral_norm)"
        )
    if type(layer) not in kinds:
        base = next(full_name(base) for base in type(layer).__mro__ if base in kinds)
        return f"a {kind}, a subclass of {base} with behaviour that a noisy layer would drop, which cannot be converted"
    if "forward" in vars(layer):
        return f"a {kind} with a forward of its own, which cannot be converted"
    if (narrow := why_not(layer.weight.dtype)) is not None:
        return f"a {kind} in {narrow}; convert in float32 and train under torch.autocast"
    return None


def full_name(cls: type) -> str:
    """The class with its module, torch's layers by their public name."""
    if getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _own_weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter with two dimensions or more outside the methods' noise, once, with the module that holds it."""
    seen: set[int] = set()
    noise = {id(inner) for part in module.modules() if isinstance(part, Noise) for inner in part.modules()}
    for part in module.modules():
        for key, parameter in part._parameters.items() if id(part) not in noise else ():
            if parameter is not None and id(parameter) not in seen and (is_lazy(parameter) or parameter.dim() > 1):
                seen.add(id(parameter))
                yield part, key, parameter


def all_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight tensor of a network as evaluation uses it, by the class of its layer: parameters of two dimensions or more.

    Biases, normalisation and the methods' noise are none. Raises ``UserError`` where one has no shape yet.
    """
    for part, key, parameter in _own_weights(module):
        require(not is_lazy(parameter), f"a {full_name(type(part))} has no weight yet; run a batch through the network first")
        masked = isinstance(part, NoisyLayer) and key == "weight"
        yield type(part).__name__, part.pruned_weight() if masked else parameter  # type: ignore[operator]


def warn_of_dense(module: nn.Module, exclude: tuple[str, ...]) -> None:
    """Name the kinds of layer whose weights stay dense because ``convert`` does not know them, with their share."""
    names = {id(part): name for name, part in module.named_modules()}
    noisy = {id(layer.theta) for _, layer in noisy_layers(module)}
    known = {id(layer) for _, layer in weight_layers(module) if type(layer) is not NonDynamicallyQuantizableLinear}
    layers: dict[str, set[int]] = {}
    total = left = 0
    for part, _, parameter in _own_weights(module):
        count = 0 if is_lazy(parameter) else parameter.numel()
        total += count
        if id(part) not in known and id(parameter) not in noisy and not matches([names[id(part)]], exclude):
            layers.setdefault(type(part).__name__, set()).add(id(part))
            left += count
    if layers:
        kinds = ", ".join(f"{len(found)} {kind}" for kind, found in layers.items())
        warnings.warn(
            f"these layers stay plain and dense: {kinds}; they hold {left} of the network's {total} weights"
            f" ({100.0 * left / max(total, 1):.2f} %). svdo.compression(model) counts all weights, svdo.sparsity those of"
            " Linear and Conv2d layers alone; name layers in exclude that you mean to leave out",
            stacklevel=3,
        )


def warn_of_removed(layers: Iterable[tuple[str, NoisyLayer]]) -> None:
    """Where noise drowns a layer from the start, evaluation has lost it; under ``train_clip`` training may not find it."""
    drowned = []
    for name, layer in layers:
        mask = None if layer.noise.threshold is None or layer.theta.is_meta else layer.noise.mask(layer.theta)
        if mask is not None and 2 * int(mask.sum()) < mask.numel():
            drowned.append(name or "the module")
    if drowned:
        warnings.warn(
            f"most weights are removed from the start, being small beside their noise, in: {', '.join(drowned)};"
            " lower log_sigma2, or leave these out with exclude",
            stacklevel=3,
        )


def warn_of_shared(module: nn.Module) -> None:
    """Name each noisy layer's weight that another layer has, too."""
    noisy = {id(layer.theta): name for name, layer in noisy_layers(module)}
    for name, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            converted = noisy.get(id(parameter))
            if converted is not None and name != converted:
                warnings.warn(
                    f"{name}.{key} is also the weight of {converted}: noise and removal are each layer's own, and a KL and a"
                    " compression count it once per layer; leave both out with exclude",
                    stacklevel=3,
                )
