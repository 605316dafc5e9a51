"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Progress:
    """Where a run stands: ``epoch`` and ``step`` are the next to compute; sums are over the steps of this epoch."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0  # each process's seconds times its threads
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # of loss and of errors
    best_error: float = math.inf  # on validation images, of the epoch that train.best_epoch would keep so far
    best_epoch: int = 0

    def add(self, seconds: float) -> None:
        """Count the time that this process has trained for."""
        self.seconds += seconds
        self.core_seconds += seconds * torch.get_num_threads()
