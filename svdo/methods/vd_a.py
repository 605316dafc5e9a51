"""Variational dropout, type A (Kingma, Salimans, Welling 2015): Gaussian dropout A whose alpha is learned.

    B = (A o xi) theta,   xi_i ~ N(1, alpha_i),   loss = -log likelihood + KL,   alpha <= 1 (p <= 1/2)

The noise variables are the s_i of w_i = s_i theta_i (row i of theta), so the KL counts one term per input unit: in_features
for Linear, in_channels for Conv2d (whose noise is drawn per activation, its alpha shared over positions). alpha above 1 is
projected back before each noisy pass: larger noise gives high-variance gradients and poor optima, and the cubic KL is invalid
there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import Noise, NoisyLayer
from ..math.divergence import bounded_kl
from .base import DropoutMethod, method, multiply_by_noise, rate_to_log_alpha

SHARING = ("layer", "unit")


class VariationalInputNoise(Noise):
    """Multiplies each input by N(1, alpha), alpha learned per layer or per input unit, at most 1.

    ``kl_scale`` multiplies the KL.
    """

    def __init__(self, layer: NoisyLayer, rate: float, sharing: str, kl_scale: float) -> None:
        super().__init__()
        self.groups, self.spatial = layer.groups, layer.spatial
        self.units = layer.theta.shape[1] * self.groups
        self.kl_scale = kl_scale
        start = min(rate_to_log_alpha(rate), 0.0)
        self.raw_log_alpha = nn.Parameter(torch.full((self.units if sharing == "unit" else 1,), start))

    def project(self) -> None:
        """alpha <= 1."""
        self.raw_log_alpha.clamp_(max=0.0)

    def perturb(self, x: Tensor) -> Tensor:
        """x o xi; the units are the last dimension before those of positions."""
        alpha = self.raw_log_alpha.exp()
        return multiply_by_noise(x, alpha.view(-1, *(1,) * self.spatial))

    def kl(self, weight: Tensor) -> Tensor:
        """One cubic KL term per input unit; alphas above 1 count as 1."""
        return self.kl_scale * bounded_kl(self.raw_log_alpha.expand(self.units))

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log alpha of the input unit that each weight multiplies."""
        units = self.raw_log_alpha.clamp(max=0.0).expand(self.units).view(self.groups, -1)
        rows = units.repeat_interleave(weight.shape[0] // self.groups, dim=0)
        return rows.view(*rows.shape, *(1,) * self.spatial)


@method
@dataclass
class VDA(DropoutMethod):
    """``rates``: the p that alpha starts from, per layer; ``sharing``: one alpha per ``layer`` or per input ``unit``."""

    label: ClassVar[str] = "Variational dropout A"
    variational: ClassVar[bool] = True
    learns_rates: ClassVar[bool] = True
    kl_scale: ClassVar[float] = 1.0
    name: str = "vd_a"
    sharing: str = "unit"

    def noise(self, layer: NoisyLayer, name: str) -> VariationalInputNoise | None:
        """Learned Gaussian noise on the layer's input, where its rate is not 0."""
        rate = self.rate(name)
        return VariationalInputNoise(layer, rate, self.sharing, self.kl_scale) if rate else None

    def check(self) -> None:
        """Raise ``UserError`` on an unknown way of sharing or a rate outside [0, 1)."""
        super().check()
        if self.sharing not in SHARING:
            raise UserError(f"method.sharing={self.sharing} is not a choice; take one of: {', '.join(SHARING)}")
