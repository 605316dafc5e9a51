"""Any ``nn.Module`` -> the same module with a method's noisy layers, weights kept."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from .config import check_part
from .errors import UserError, require
from .layers import NOISY, Noise, NoisyLayer, noisy_layers, warn_of_uncalled, weight_layers
from .methods import Method, find

NARROW = (torch.float16, torch.bfloat16)


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
        include: shell patterns of the dotted names of layers, or of modules around them, to convert.
        exclude: such patterns of what to leave plain; it wins over ``include``.
        **settings: the method's fields, where ``method`` is a name, such as ``threshold=2.5`` or ``rates={"fc*": 0.3}``.

    Returns:
        The converted copy. Train it with ``cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train``, in training
        mode. Other kinds of layers stay as they are; frozen ones are converted, too (exclude them). ``state_dict`` has
        parameters and masks, not the settings: load it into a network converted with the same ones. Noisy training passes
        can be differentiated once, not twice nor by ``torch.func``.

    Raises:
        UserError: on an unknown method, field or value; on a layer that is noisy already or in half precision (convert in
            float32 and train under autocast); where no layer matches, or none matches one of the patterns given; or on a
            layer whose behaviour a noisy one would silently drop (exclude it): a subclass of Linear or Conv2d, one with a
            forward of its own, a weight made by a hook.

    Warns:
        Where most of a layer's weights start as removed, and where a layer shares its weight with another: each then
            has its own noise and its own removal, and the KL counts the weight twice.
    """
    require(isinstance(module, nn.Module), f"convert takes a torch.nn.Module, not a {type(module).__name__}")
    if isinstance(method, str):
        cls = find(method)
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        for key in settings:
            choices = ", ".join(fields) or "none"
            require(key in fields, f"method {method} has no field {key}; its fields are: {choices}")
        method = cls(**settings)
    elif settings:
        raise UserError("settings go into the Method itself, or beside a method's name, not both")
    require(isinstance(method, Method), f"{method} is no method; give a name, such as sparsevd, or a Method with its settings")
    check_part("method", method)
    if any(noisy_layers(module)):
        raise UserError("the module has noisy layers already; convert the plain network")
    include, exclude = (_patterns(key, value) for key, value in (("include", include), ("exclude", exclude)))
    converted = _copy(module)
    layers = _named(converted)
    require(bool(layers), "no Linear or Conv2d layer in the module")
    choices = ", ".join(names[0] for names, _ in layers)
    for key, pattern in (*(("include", pattern) for pattern in include), *(("exclude", pattern) for pattern in exclude)):
        found = any(_matches(names, [pattern]) for names, _ in layers)
        require(found, f"{key}={pattern} matches no Linear or Conv2d layer; take names or patterns of: {choices}")
    chosen = {names[0]: layer for names, layer in layers if _matches(names, include) and not _matches(names, exclude)}
    require(bool(chosen), "no Linear or Conv2d layer of the module matches include and exclude")
    candidates = {name: _noisy(layer, name) for name, layer in chosen.items()}
    method.check_patterns(candidates)
    with torch.random.fork_rng(devices=[]):
        noises = method.noises(candidates)
    for name, layer in candidates.items():
        noise = noises[name]
        if noise is None:
            layer.__class__ = _plain_kind(layer)
        else:
            layer.noise = noise.to(device=layer.weight.device, dtype=layer.weight.dtype)
            layer.noise.train(layer.training)
    _warn_of_removed(noisy_layers(converted))
    _warn_of_shared(converted)
    for part in converted.modules():
        if isinstance(part, nn.TransformerEncoderLayer) and any(noisy_layers(part)):
            part.activation_relu_or_gelu = 0  # torch's fast path of evaluation would read the weights past the layers
    return converted


def plain(module: nn.Module) -> nn.Module:
    """The network that evaluation uses, made of torch's own layers: to be exported, or used where svdo is not.

    Args:
        module: a converted network; it is not changed.

    Returns:
        A copy in the same mode whose noisy layers are Linear and Conv2d again, under their old names, with the weights of
        ``evaluation_weights``, 0 where removed; a weight that several layers share comes apart. The methods' noise is gone
        from it, in training mode too.
    """
    warn_of_uncalled(module)
    result = _copy(module)
    for _, layer in list(noisy_layers(result)):
        layer.weight = nn.Parameter(layer.pruned_weight().detach().clone(), layer.weight.requires_grad)
        layer.__class__ = _plain_kind(layer)
        del layer.noise
        for key in ("sampling", "variance_dtype", "called"):
            vars(layer).pop(key, None)
    return result


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise UserError(
            f"the network cannot be copied: {str(error).splitlines()[0]}. A weight made by a hook, as by"
            " torch.nn.utils.weight_norm, is one reason; take torch.nn.utils.parametrizations instead"
        ) from error


def _patterns(key: str, value: str | Iterable[str]) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    require(all(isinstance(part, str) for part in patterns), f"{key}={value!r} must be a pattern or a list of patterns")
    return patterns


def _warn_of_removed(layers: Iterable[tuple[str, NoisyLayer]]) -> None:
    """Where noise drowns a layer from the start, evaluation has lost it; under ``train_clip`` training may not find it."""
    drowned = []
    for name, layer in layers:
        mask = None if layer.noise.threshold is None or layer.weight.is_meta else layer.noise.mask(layer.weight)
        if mask is not None and 2 * int(mask.sum()) < mask.numel():
            drowned.append(name or "the module")
    if drowned:
        warnings.warn(
            f"most weights are removed from the start, being small beside their noise, in: {', '.join(drowned)};"
            " lower log_sigma2, or leave these out with exclude",
            stacklevel=3,
        )


def _warn_of_shared(module: nn.Module) -> None:
    noisy = {id(layer.weight): name for name, layer in noisy_layers(module)}
    for name, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            converted = noisy.get(id(parameter))
            if converted is not None and name != converted:
                warnings.warn(
                    f"{name}.{key} is also the weight of {converted}: noise and removal are each layer's own, and a KL and a"
                    " compression count it once per layer; leave both out with exclude",
                    stacklevel=3,
                )


def _named(module: nn.Module) -> list[tuple[list[str], nn.Linear | nn.Conv2d]]:
    """Every Linear and Conv2d with all its names: a module may be registered under several."""
    names: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    return [(names[id(layer)], layer) for _, layer in weight_layers(module)]


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether a pattern matches one of a layer's names or the name of a module around it."""
    parts = (name.split(".") for name in names)
    around = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
    return any(fnmatchcase(name, pattern) for name in around for pattern in patterns)


def _noisy(layer: nn.Linear | nn.Conv2d, name: str) -> NoisyLayer:
    """The layer itself, made noisy in place: whatever refers to it, a list of layers for one, goes on doing so."""
    where, kind = f"layer {name}" if name else "the module", type(layer).__name__
    if "weight" not in layer._parameters:
        kind += " whose weight a hook makes"
    elif "forward" in vars(layer):
        kind += " with a forward of its own"
    if type(layer) not in NOISY or kind != type(layer).__name__:
        raise UserError(f"{where} is a {kind}, which cannot be converted; exclude it by name")
    require(
        layer.weight.dtype not in NARROW,
        f"{where} is in {str(layer.weight.dtype).removeprefix('torch.')}, too narrow for the noise and its KL to learn;"
        " convert in float32 and train under torch.autocast",
    )
    layer.__class__ = NOISY[type(layer)]  # type: ignore[assignment]
    return layer  # type: ignore[return-value]


def _plain_kind(layer: nn.Module) -> Any:
    return next(kind for kind, noisy in NOISY.items() if isinstance(layer, noisy))


def kl(module: nn.Module) -> torch.Tensor:
    """KL(q || p) of the whole network, a scalar in nats: the sum over its noisy layers, 0 where there is none.

    For a mean cross-entropy over minibatches add ``kl_weight * kl(module) / n_train`` to the loss.
    """
    terms = [layer.kl() for _, layer in noisy_layers(module)]
    if not terms:
        return torch.zeros((), device=next((p.device for p in module.parameters()), None))
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def parameter_groups(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Parameters in groups for a torch optimizer: weight decay on a noise parameter would be a second, unintended prior.

    Args:
        module: a converted network.
        lr: the learning rate; a method's noise parameters may take a multiple of it (``Noise.learning_rates``).
        weight_decay: for weight matrices and filters alone.

    Returns:
        Groups with the keys ``params``, ``lr``, ``weight_decay``, and two that tell them apart: ``noise``, whether these are
        noise parameters, and ``scale``, their multiple of ``lr``.
    """
    scales = {
        id(p): part.learning_rates.get(name.rpartition(".")[2], 1.0)
        for part in module.modules()
        if isinstance(part, Noise)
        for name, p in part.named_parameters()
    }

    def group(
        parameters: Iterable[nn.Parameter], noise: bool = False, scale: float = 1.0, decay: float = 0.0
    ) -> dict[str, Any]:
        return {"params": list(parameters), "lr": lr * scale, "weight_decay": decay, "noise": noise, "scale": scale}

    plain = [p for p in module.parameters() if id(p) not in scales]
    return [
        group(p for p in plain if p.dim() <= 1),
        group((p for p in plain if p.dim() > 1), decay=weight_decay),
        *(
            group((p for p in module.parameters() if scales.get(id(p)) == scale), noise=True, scale=scale)
            for scale in sorted(set(scales.values()))
        ),
    ]


def advance(module: nn.Module, step: int, steps: int) -> None:
    """Tell the noisy layers how far training has come: methods with phases (pruning and its like) act on it.

    Args:
        module: a converted network.
        step: how many steps of training are done; call before each step and, with ``step == steps``, after the last.
        steps: the number of all steps.

    Raises:
        UserError: where ``step`` does not lie between 0 and ``steps``.
    """
    require(0 <= step <= steps, f"advance: step {step} of {steps} is out of range; it must lie between 0 and {steps}")
    with torch.no_grad():
        for _, layer in noisy_layers(module):
            layer.noise.advance(layer.weight, step, steps)
