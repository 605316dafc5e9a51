"""Adam (Kingma and Ba 2015)."""

from __future__ import annotations

import torch

from ...config import TrainConfig
from .base import Groups, optimizer


@optimizer("adam")
def adam(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """``train.momentum`` is beta 1."""
    return torch.optim.Adam(groups, train.lr, betas=(train.momentum, 0.999), eps=train.adam_eps, fused=True)
