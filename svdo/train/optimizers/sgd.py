"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import torch

from ...config import TrainConfig
from .base import Groups, optimizer


@optimizer("sgd")
def sgd(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """``train.momentum`` is the momentum."""
    return torch.optim.SGD(groups, train.lr, momentum=train.momentum, fused=True)
