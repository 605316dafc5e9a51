"""The noisy layers of a whole network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .base import NoisyLayer


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


def warn_of_uncalled(module: nn.Module) -> None:
    """Warn of noisy layers that no pass has gone through while others were: something reads their weights past them."""
    layers = list(noisy_layers(module))
    idle = [name for name, layer in layers if not layer.called]
    if 0 < len(idle) < len(layers):
        warnings.warn(
            f"the network has run but not through the noisy layer {idle[0]}: if it reads that weight without calling the layer,"
            " neither noise nor removal applies; leave it out with exclude",
            stacklevel=3,
        )


@torch.no_grad()
def dropout_rates(module: nn.Module) -> dict[str, float]:
    """For each noisy layer that has an alpha, by dotted name, the mean of p = alpha / (1 + alpha) over its weights."""
    alphas = {name: layer.noise.log_alpha(layer.weight) for name, layer in noisy_layers(module)}
    return {name: log_alpha.sigmoid().mean().item() for name, log_alpha in alphas.items() if log_alpha is not None}


@contextmanager
def sampling(module: nn.Module) -> Iterator[None]:
    """Inside the context, evaluation draws noise as training does, and removes weights only as training does.

    Sparse VD with ``train_clip`` has those beyond the threshold at 0 in training, too; without, noise is all that silences
    them. Batch norm stays in evaluation mode. A copy of the module made inside goes on drawing.
    """
    before = [(layer, layer.sampling) for _, layer in noisy_layers(module)]
    for layer, _ in before:
        layer.sampling = True
    try:
        yield
    finally:
        for layer, was in before:
            layer.sampling = was
