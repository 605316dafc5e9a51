"""Which optimizer moves which parameters, and the registry that each ``@optimizer`` line fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...config import TrainConfig
from ...conversion import parameter_groups
from ...registry import Registry

Groups = list[dict[str, Any]]  # as ``parameter_groups`` makes them
Make = Callable[[Groups, TrainConfig], torch.optim.Optimizer]
OPTIMIZERS: Registry[Make] = Registry("train.optimizer")


def optimizer(name: str) -> Callable[[Make], Make]:
    """Register what makes the optimizer called ``name`` from parameter groups and the training's settings."""

    def register(make: Make) -> Make:
        OPTIMIZERS.add(name, make)
        return make

    return register


def find(name: str) -> Make:
    """What makes that optimizer; raises ``UserError`` listing the choices where there is none."""
    return OPTIMIZERS.find(name)


def optimizers(model: nn.Module, train: TrainConfig) -> list[torch.optim.Optimizer]:
    """Those that a run steps: noise parameters learn with Adam, whatever the weights do.

    Their gradients are thousands of times smaller, so one learning rate serves both only where the optimizer normalises.
    """
    groups = parameter_groups(model, train.lr, train.weight_decay)
    if train.optimizer == "adam":
        return [OPTIMIZERS["adam"](groups, train)]
    weights, noise = ([group for group in groups if group["noise"] == of_noise] for of_noise in (False, True))
    return [find(train.optimizer)(weights, train)] + ([OPTIMIZERS["adam"](noise, train)] if noise else [])
