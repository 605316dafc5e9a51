"""Noisy layers, one file per kind; ``NOISY`` says which layer of torch's has which noisy counterpart."""

from torch import nn

from .base import Noise, NoisyLayer, drawn_like
from .conv import NoisyConv2d
from .linear import NoisyLinear
from .network import dropout_rates, noisy_layers, sampling, warn_of_uncalled, weight_layers

NOISY: dict[type[nn.Module], type[NoisyLayer]] = {nn.Linear: NoisyLinear, nn.Conv2d: NoisyConv2d}

__all__ = [
    "NOISY",
    "Noise",
    "NoisyConv2d",
    "NoisyLayer",
    "NoisyLinear",
    "drawn_like",
    "dropout_rates",
    "noisy_layers",
    "sampling",
    "warn_of_uncalled",
    "weight_layers",
]
