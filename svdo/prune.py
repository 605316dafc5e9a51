"""What evaluation removes: masks, sparsity per layer, compression. Only weights count, never biases, as in the papers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import NoisyLayer, noisy_layers, weight_layers


@dataclass(frozen=True)
class LayerSparsity:
    """One layer's weights, how many of them evaluation uses, and the share it does not, in percent."""

    name: str
    weights: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Percent of the layer's weights that are zero."""
        return 100.0 * (1.0 - self.nonzero / self.weights)


def masks(module: nn.Module) -> dict[str, Tensor]:
    """For each noisy layer, by dotted name, a boolean tensor of its weight's shape: True where the weight is kept."""
    with torch.no_grad():
        found = {}
        for name, layer in noisy_layers(module):
            mask = layer.noise.mask(layer.weight)
            found[name] = torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask
        return found


def sparsity(module: nn.Module) -> list[LayerSparsity]:
    """Weights and surviving weights of every Linear and Conv2d layer, noisy or plain, in definition order."""
    with torch.no_grad():
        layers = list(weight_layers(module))
        counts = [
            (layer.pruned_weight() if isinstance(layer, NoisyLayer) else layer.weight).count_nonzero() for _, layer in layers
        ]
        # One transfer for the whole network, not one per layer.
        numbers = torch.stack(counts).tolist() if counts else []
    return [LayerSparsity(name, layer.weight.numel(), n) for (name, layer), n in zip(layers, numbers, strict=True)]


def compression(layers: list[LayerSparsity]) -> float:
    """|W| / |W != 0| over the layers; infinite where nothing is left."""
    weights, nonzero = sum(layer.weights for layer in layers), sum(layer.nonzero for layer in layers)
    return weights / nonzero if nonzero else float("inf")
