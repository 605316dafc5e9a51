"""Variational dropout, type B (Kingma, Salimans, Welling 2015): Gaussian dropout B whose alpha is learned.

    q(w_ij) = N(theta_ij, alpha_ij theta_ij^2),   loss = -log likelihood + KL,   alpha <= 1 (p <= 1/2)

sampled through the local reparameterization. The KL counts one term per weight, also where weights share their alpha.
alpha above 1 is projected back before each noisy pass, so no weight ever reaches the pruning threshold of the 2017 paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import Noise, NoisyLayer
from ..math.divergence import bounded_kl
from .base import DropoutMethod, method, rate_to_log_alpha

SHARING = ("layer", "unit", "weight")


class VariationalWeightNoise(Noise):
    """Gives each weight the variance alpha theta^2, alpha learned per layer, input unit or weight, at most 1."""

    def __init__(self, layer: NoisyLayer, rate: float, sharing: str) -> None:
        super().__init__()
        positions = (1,) * layer.spatial
        shapes = {
            "layer": (1, 1, *positions),
            "unit": (layer.groups, layer.theta.shape[1], *positions),
            "weight": tuple(layer.theta.shape),
        }
        self.raw_log_alpha = nn.Parameter(torch.full(shapes[sharing], min(rate_to_log_alpha(rate), 0.0)))

    def project(self) -> None:
        """alpha <= 1."""
        self.raw_log_alpha.clamp_(max=0.0)

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """theta and alpha theta^2."""
        return weight, self._spread(self.raw_log_alpha, weight).exp() * weight.square()

    def kl(self, weight: Tensor) -> Tensor:
        """One cubic KL term per weight; alphas above 1 count as 1."""
        terms_per_alpha = weight.numel() // max(self.raw_log_alpha.numel(), 1)  # a layer without inputs has none
        return bounded_kl(self.raw_log_alpha) * terms_per_alpha

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log alpha, broadcastable to ``weight``."""
        return self._spread(self.raw_log_alpha.clamp(max=0.0), weight)

    @staticmethod
    def _spread(raw: Tensor, weight: Tensor) -> Tensor:
        # One alpha per input unit: a grouped convolution's rows belong to their own group's units.
        return raw if raw.shape[0] in (1, weight.shape[0]) else raw.repeat_interleave(weight.shape[0] // raw.shape[0], dim=0)


@method
@dataclass
class VDB(DropoutMethod):
    """``rates``: the p that alpha starts from; ``sharing``: one alpha per ``layer``, input ``unit`` or ``weight``."""

    label: ClassVar[str] = "Variational dropout B"
    variational: ClassVar[bool] = True
    learns_rates: ClassVar[bool] = True
    name: str = "vd_b"
    sharing: str = "weight"

    def noise(self, layer: NoisyLayer, name: str) -> VariationalWeightNoise | None:
        """Learned Gaussian noise on the layer's output, where its rate is not 0."""
        rate = self.rate(name)
        return VariationalWeightNoise(layer, rate, self.sharing) if rate else None

    def check(self) -> None:
        """Raise ``UserError`` on an unknown way of sharing or a rate outside [0, 1)."""
        super().check()
        if self.sharing not in SHARING:
            raise UserError(f"method.sharing={self.sharing} is not a choice; take one of: {', '.join(SHARING)}")
