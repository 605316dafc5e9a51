"""The noisy layers of a whole network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import require
from .base import NoisyLayer
from .noise import SAMPLING


def noisy_layers(module: nn.Module) -> Iterator[tuple[str, NoisyLayer]]:
    """Every noisy layer inside ``module`` with its dotted name, in definition order."""
    for name, layer in module.named_modules():
        if isinstance(layer, NoisyLayer):
            yield name, layer


def weight_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every Linear and Conv2d inside ``module``, noisy or not, with its dotted name, in definition order."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name, layer


def check_module(caller: str, module: object) -> None:
    """Raise ``UserError`` unless what was given to the function ``caller`` is a module."""
    require(isinstance(module, nn.Module), f"{caller} takes a torch.nn.Module, not a {type(module).__name__}")


def check_shaped(module: nn.Module) -> None:
    """Raise ``UserError`` where a lazy layer waits for its first batch."""
    for name, part in module.named_modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            require(
                not is_lazy(tensor),
                f"layer {name}, a {type(part).__name__}, has no weight yet; run a batch through the network first",
            )


def warn_of_uncalled(module: nn.Module) -> None:
    """Warn of noisy layers that no pass has gone through while the network was run: something reads their weights past them."""
    layers = list(noisy_layers(module))
    idle = [name for name, layer in layers if not layer.called]
    if idle and any(layer.called or layer.read for _, layer in layers):
        warnings.warn(
            f"the network has run but not through the noisy layers {', '.join(idle)}: unless their turn comes later, it reads"
            " those weights without calling the layers, so they train without noise while the KL removes them; convert with"
            f" exclude={idle}",
            stacklevel=3,
        )


def warn_of_unread(module: nn.Module) -> None:
    """Warn of noisy layers that the network's passes have left alone: it may take their parameters out of ``parameters()``."""
    layers = list(noisy_layers(module))
    unread = [name for name, layer in layers if not (layer.called or layer.read)]
    if 0 < len(unread) < len(layers):
        warnings.warn(
            f"the network has run, but neither called the noisy layers {', '.join(unread)} nor read their weight; if it takes"
            " their parameters otherwise, it has evaluated with weights that are 0 here; convert with"
            f" exclude={unread}",
            stacklevel=3,
        )


@torch.no_grad()
def dropout_rates(module: nn.Module) -> dict[str, float]:
    """For each noisy layer that has an alpha, by dotted name, the mean of p = alpha / (1 + alpha) over its weights."""
    alphas = {name: layer.noise.log_alpha(layer.theta) for name, layer in noisy_layers(module)}
    return {name: log_alpha.sigmoid().mean().item() for name, log_alpha in alphas.items() if log_alpha is not None}


@contextmanager
def sampling(module: nn.Module) -> Iterator[None]:
    """Inside the context, evaluation draws noise as training does, and removes weights only as training does.

    It holds for this thread (and asyncio task) alone, and for the layers of this module, not of copies made inside. Sparse VD
    with ``train_clip`` has weights beyond the threshold at 0 in training, too; without, noise is all that silences them.
    Batch norm stays in evaluation mode.
    """
    check_module("sampling", module)
    token = SAMPLING.set(SAMPLING.get() | {layer for _, layer in noisy_layers(module)})
    try:
        yield
    finally:
        SAMPLING.reset(token)
