"""Any ``nn.Module`` -> the same module with a method's noisy layers, weights kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .config import check_part
from .errors import UserError, require
from .layers import (
    NOISY,
    Noise,
    NoisyLayer,
    check_module,
    check_shaped,
    choice,
    noisy_layers,
    warn_of_uncalled,
    warn_of_unread,
)
from .layers.settings import text as settings_text
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
        include: shell patterns of the dotted names of layers, or of modules around them, to convert; a list, or one string
            with commas between them.
        exclude: such patterns of what to leave plain; it wins over ``include``.
        **settings: the method's fields, where ``method`` is a name, such as ``threshold=2.5`` or ``rates={"fc*": 0.3}``.

    Returns:
        The converted copy. Train it with ``cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train``, in training
        mode. Other kinds of layers stay as they are; frozen ones are converted, too (exclude them). ``state_dict`` has
        parameters, masks and, in each ``noise._extra_state``, method and settings: it loads into a network converted with the
        same ones, and any other is refused. Noisy training passes can be differentiated once, not twice nor by ``torch.func``.
        In evaluation a layer's ``weight`` is the thresholded one, also where it is read without calling the layer; its
        parameter is ``theta``.

    Raises:
        UserError: on an unknown method, field or value; on a layer that is noisy already; where no layer matches, or none
            matches one of the patterns given; or on layers that cannot be converted, all at once, with an ``exclude`` to
            paste: half precision (convert in float32 and train under autocast), complex or lazy ones, and those whose
            behaviour a noisy one would silently drop: a subclass of Linear or Conv2d, one with a forward of its own, a
            weight made by a hook, a parametrization or ``torch.nn.utils.prune``.

    Warns:
        UserWarning: of the kinds of layer with weights that stay dense, with their share; where most of a layer's weights
            start as removed; and where a layer shares its weight with another: each then has its own noise and its own
            removal, and the KL counts the weight twice.
    """
    require(isinstance(module, nn.Module), f"convert takes a torch.nn.Module, not a {type(module).__name__}")
    method = _method_of(method, settings)
    if any(noisy_layers(module)):
        raise UserError("the module has noisy layers already; convert the plain network")
    include, exclude = choice.patterns("include", include), choice.patterns("exclude", exclude)
    choice.choose(module, NOISY, include, exclude)  # before the copy, which some of what is refused would not survive
    converted = _copy(module)
    candidates: dict[str, NoisyLayer] = {}
    for name, layer in choice.choose(converted, NOISY, include, exclude).items():
        # In place: whatever refers to the layer, a list for one, goes on doing so.
        layer.__class__ = NOISY[type(layer)]  # type: ignore[assignment]
        candidates[name] = layer  # type: ignore[assignment]
    _give_noise(candidates, method)
    choice.warn_of_removed(noisy_layers(converted))
    choice.warn_of_shared(converted)
    choice.warn_of_dense(converted, exclude)
    for part in converted.modules():
        if isinstance(part, nn.TransformerEncoderLayer) and any(noisy_layers(part)):
            part.activation_relu_or_gelu = 0  # torch's fast path of evaluation would read the weights past the layers
    return converted


def method_of(module: nn.Module) -> Method | None:
    """The method, with its settings, that a network was converted with; None where no layer is noisy."""
    said = next((layer.noise.settings_text for _, layer in noisy_layers(module) if layer.noise.settings_text), "")
    if not said:
        return None
    known = json.loads(said)
    settings: dict[str, Any] = {
        key: dict(value) if isinstance(value, list) else value for key, value in known["settings"].items()
    }
    return find(known["method"])(**settings)


def _method_of(method: str | Method, settings: dict[str, Any]) -> Method:
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
    return method


def _give_noise(layers: dict[str, NoisyLayer], method: Method) -> None:
    """Each layer its noise, in place; those that the method leaves alone become plain again."""
    method.check_patterns(layers)
    with torch.random.fork_rng(devices=[]):
        noises = method.noises(layers)
    described = settings_text(method.name, method.chosen())
    for name, layer in layers.items():
        noise = noises[name]
        if noise is None:
            layer.__class__ = _plain_kind(layer)
        else:
            noise.settings_text = described
            layer.noise = noise.to(device=layer.theta.device, dtype=layer.theta.dtype)
            layer.noise.train(layer.training)


def plain(module: nn.Module) -> nn.Module:
    """The network that evaluation uses, made of torch's own layers: to be exported, or used where svdo is not.

    Args:
        module: a converted network; it is not changed.

    Returns:
        A copy in the same mode whose noisy layers are Linear and Conv2d again, under their old names, with the weights of
        ``evaluation_weights``, 0 where removed; a weight that several layers share comes apart. The methods' noise is gone
        from it, in training mode too.

    Warns:
        Of noisy layers whose weights the network may use without calling the layers or reading their ``weight``.
    """
    check_module("plain", module)
    warn_of_unread(module)
    result = _copy(module)
    for (_, layer), (_, original) in zip(list(noisy_layers(result)), noisy_layers(module), strict=True):
        layer.weight = nn.Parameter(original.pruned_weight().detach().clone(), layer.theta.requires_grad)
        layer.__class__ = _plain_kind(layer)
        del layer.noise
        for key in ("draws", "variance_dtype", "called", "kept", "read"):
            vars(layer).pop(key, None)
    return result


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        check_shaped(module)
        made = [
            name
            for name, part in module.named_modules()
            if any(isinstance(value, torch.Tensor) and value.grad_fn is not None for value in vars(part).values())
        ]
        reason = f"layer {', '.join(made)} holds a weight made by a hook" if made else str(error).splitlines()[0]
        raise UserError(
            f"the network cannot be copied: {reason}. Where torch.nn.utils.prune made it, prune.remove makes it a parameter"
            " again; for torch.nn.utils.weight_norm and spectral_norm take torch.nn.utils.parametrizations instead"
        ) from error


def _plain_kind(layer: nn.Module) -> Any:
    return next(kind for kind, noisy in NOISY.items() if isinstance(layer, noisy))


def kl(module: nn.Module) -> torch.Tensor:
    """KL(q || p) of the whole network, a scalar in nats: the sum over its noisy layers, 0 where there is none.

    For a mean cross-entropy over minibatches add ``kl_weight * kl(module) / n_train`` to the loss.
    """
    check_module("kl", module)
    warn_of_uncalled(module)
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
    check_module("parameter_groups", module)
    check_shaped(module)
    for key, value in (("lr", lr), ("weight_decay", weight_decay)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= sys.float_info.max
        require(number, f"parameter_groups: {key}={value!r} must be a number that is not negative")
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
    check_module("advance", module)
    for key, value in (("step", step), ("steps", steps)):
        require(isinstance(value, int), f"advance: {key}={value!r} must be a whole number")
    require(0 <= step <= steps, f"advance: step {step} of {steps} is out of range; it must lie between 0 and {steps}")
    warn_of_uncalled(module)
    with torch.no_grad():
        for _, layer in noisy_layers(module):
            layer.noise.advance(layer.theta, step, steps)
