"""Noisy layers, one file per kind; ``NOISY`` says which layer of torch's has which noisy counterpart."""

from torch import nn

from . import choice
from .base import NoisyLayer, name_of
from .conv import NoisyConv2d
from .draw import drawn_like
from .linear import NoisyLinear
from .network import (
    check_module,
    check_shaped,
    dropout_rates,
    noisy_layers,
    sampling,
    warn_of_uncalled,
    warn_of_unread,
    weight_layers,
)
from .noise import THRESHOLDS, Noise

NOISY: dict[type[nn.Module], type[NoisyLayer]] = {nn.Linear: NoisyLinear, nn.Conv2d: NoisyConv2d}

__all__ = [
    "NOISY",
    "THRESHOLDS",
    "Noise",
    "NoisyConv2d",
    "NoisyLayer",
    "NoisyLinear",
    "check_module",
    "check_shaped",
    "choice",
    "drawn_like",
    "dropout_rates",
    "name_of",
    "noisy_layers",
    "sampling",
    "warn_of_uncalled",
    "warn_of_unread",
    "weight_layers",
]
