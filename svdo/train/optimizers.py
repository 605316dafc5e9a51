"""Which optimizer moves which parameters."""

from __future__ import annotations

import torch
from torch import nn

from ..config import TrainConfig
from ..conversion import parameter_groups


def optimizers(model: nn.Module, train: TrainConfig) -> list[torch.optim.Optimizer]:
    """Noise parameters learn with Adam, whatever the weights do: their gradients are thousands of times smaller."""
    groups = parameter_groups(model, train.lr, train.weight_decay)
    found: list[torch.optim.Optimizer] = []
    if train.optimizer == "sgd":
        weights, groups = ([group for group in groups if group["noise"] == noise] for noise in (False, True))
        found.append(torch.optim.SGD(weights, train.lr, momentum=train.momentum, fused=True))
    if groups:
        found.append(torch.optim.Adam(groups, train.lr, betas=(train.momentum, 0.999), eps=train.adam_eps, fused=True))
    return found
