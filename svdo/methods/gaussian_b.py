"""Gaussian dropout, type B (Wang and Manning 2013): the moment-matched noise on the output.

    b_mj ~ N(sum_i a_mi theta_ij, alpha sum_i a_mi^2 theta_ij^2) independently,   alpha = p / (1 - p)

Each output has the mean and variance of type A, but all outputs are independent: q(w_ij) = N(theta_ij, alpha theta_ij^2).
There is no KL term: alpha is fixed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers import Noise, NoisyLayer
from .base import DropoutMethod, method, rate_to_log_alpha


class GaussianWeightNoise(Noise):
    """Gives each weight the variance exp(log_alpha) theta^2."""

    fixed_log_alpha: Tensor

    def __init__(self, log_alpha: float) -> None:
        super().__init__()
        self.register_buffer("fixed_log_alpha", torch.tensor(log_alpha))

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """theta and alpha theta^2."""
        return weight, self.fixed_log_alpha.exp() * weight.square()

    def log_alpha(self, weight: Tensor) -> Tensor:
        """The fixed log alpha, a scalar."""
        return self.fixed_log_alpha


@method
@dataclass
class GaussianB(DropoutMethod):
    """``rates``: p per layer, by shell pattern."""

    label: ClassVar[str] = "Gaussian dropout B"
    name: str = "gaussian_b"

    def noise(self, layer: NoisyLayer, name: str) -> GaussianWeightNoise | None:
        """Gaussian noise on the layer's output, where its rate is not 0."""
        rate = self.rate(name)
        return GaussianWeightNoise(rate_to_log_alpha(rate)) if rate else None
