"""Binary dropout (Hinton et al. 2012; Srivastava et al. 2014), the baseline of both papers.

    B = (A o xi) theta,   xi ~ Bernoulli(1 - p) / (1 - p), one per example and input unit

Convolutions drop single activations. There is no KL term, and evaluation uses theta.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers import Noise, NoisyLayer, drawn_like
from .base import DropoutMethod, method


class BinaryNoise(Noise):
    """Drops each input with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def perturb(self, x: Tensor) -> Tensor:
        """x o xi."""
        keep = 1.0 - self.rate
        # Comparing uniforms gives the same distribution as bernoulli_, in a third of its time on CPUs; those of a 16-bit x
        # would be too coarse.
        xi = drawn_like(x, lambda xi: xi.uniform_().lt_(keep).div_(keep), torch.promote_types(x.dtype, torch.float32))
        return x * xi.to(x.dtype)


@method
@dataclass
class Binary(DropoutMethod):
    """``rates``: p per layer, by shell pattern."""

    label: ClassVar[str] = "Binary dropout"
    name: str = "binary"

    def noise(self, layer: NoisyLayer, name: str) -> BinaryNoise | None:
        """Bernoulli noise on the layer's input, where its rate is not 0."""
        rate = self.rate(name)
        return BinaryNoise(rate) if rate else None
