"""Gaussian dropout, type A (Srivastava et al. 2014): multiplicative noise on the input.

    B = (A o xi) theta,   xi ~ N(1, alpha), one per example and input unit,   alpha = p / (1 - p)

The outputs of one example are correlated, since they share xi. There is no KL term: alpha is fixed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers import Noise, NoisyLayer
from .base import DropoutMethod, method, multiply_by_noise, rate_to_log_alpha


class GaussianInputNoise(Noise):
    """Multiplies each input by N(1, exp(log_alpha))."""

    fixed_log_alpha: Tensor

    def __init__(self, log_alpha: float) -> None:
        super().__init__()
        self.register_buffer("fixed_log_alpha", torch.tensor(log_alpha))

    def perturb(self, x: Tensor) -> Tensor:
        """x o xi."""
        return multiply_by_noise(x, self.fixed_log_alpha.exp())

    def log_alpha(self, weight: Tensor) -> Tensor:
        """The fixed log alpha, a scalar."""
        return self.fixed_log_alpha


@method
@dataclass
class GaussianA(DropoutMethod):
    """``rates``: p per layer, by shell pattern."""

    label: ClassVar[str] = "Gaussian dropout A"
    name: str = "gaussian_a"

    def noise(self, layer: NoisyLayer, name: str) -> GaussianInputNoise | None:
        """Gaussian noise on the layer's input, where its rate is not 0."""
        rate = self.rate(name)
        return GaussianInputNoise(rate_to_log_alpha(rate)) if rate else None
