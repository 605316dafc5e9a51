"""The noisy ``nn.Linear``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import NoisyLayer


class NoisyLinear(NoisyLayer, nn.Linear):
    """``nn.Linear`` whose weights or inputs are noisy; (batch, ..., in) -> (batch, ..., out)."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x weight^T + bias."""
        return F.linear(x, weight, bias)
