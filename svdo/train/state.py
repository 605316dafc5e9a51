"""Everything that a run must remember to go on, to the last bit, as if it had not been interrupted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import TrainConfig
from ..runs import Record, checkpoint
from .optimizers import optimizers


@dataclass
class Progress:
    """Where a run stands: ``epoch`` and ``step`` are the next to compute; sums are over the steps of this epoch."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0  # each process's seconds times its threads
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # of loss and of the task's tally
    best: float | None = None  # the headline on validation data, of the epoch that train.best_epoch would keep so far
    best_epoch: int = 0

    def add(self, seconds: float) -> None:
        """Count the time that this process has trained for."""
        self.seconds += seconds
        self.core_seconds += seconds * torch.get_num_threads()


class State:
    """The network with its optimizers and averages, how far it has come, and what has been said of it."""

    def __init__(self, model: nn.Module, train: TrainConfig, device: torch.device, origin: Record) -> None:
        self.model, self.device = model, device
        self.optimizers = optimizers(model, train)
        self.averaged: AveragedModel | None = None
        if train.averaging:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.averaging))
        self.best: dict[str, Tensor] = {}  # weights of the best epoch so far, where that is asked for
        self.progress = Progress()
        self.carried: Any = None  # what a recurrent network hands on from batch to batch
        self.lines: list[Record] = []  # of the epochs that are over
        self.origins = [origin]  # of each process that has trained it

    @property
    def evaluated(self) -> nn.Module:
        """The network that is judged and kept: the average over steps where there is one."""
        return self.averaged.module if self.averaged else self.model

    def set_rates(self, lr: float, noise_lr: float) -> None:
        """The learning rates of weights and of noise parameters, each times its group's ``scale``."""
        for group in itertools.chain(*(optimizer.param_groups for optimizer in self.optimizers)):
            group["lr"] = (noise_lr if group["noise"] else lr) * group["scale"]

    def step(self) -> None:
        """Move the parameters by their gradients."""
        for optimizer in self.optimizers:
            optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.model)

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": checkpoint.generator_states(self.device),
            "progress": vars(self.progress),
            "best": self.best,
            "carried": self.carried,
            "origins": self.origins,
            "lines": self.lines,
        }
        if self.averaged:
            state["averaged"] = self.averaged.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``as_dict`` gave; raises errors of many kinds where it does not fit."""
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        progress = dict(state["progress"])
        if "best_error" in progress:  # of an older version
            progress["best"] = progress.pop("best_error")
        self.progress = Progress(**progress)
        self.best, self.carried, self.lines = state["best"], state.get("carried"), state["lines"]
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        checkpoint.restore_generators(state["generators"], self.device)
        earlier, now = state["origins"], self.origins[-1]
        self.origins = earlier if {**earlier[-1], "started": now["started"]} == now else [*earlier, now]
