"""What networks, tasks and the training loop may know of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """What a batch is: inputs of (batch, *shape) and ``dtype``.

    ``classes`` is how many outcomes a network tells apart in its output, classes or words; ``vocabulary``, for inputs that
    are numbers of words or symbols, how many there are; ``carried`` says that a batch goes on where the one before ended, so
    that a recurrent network keeps its state.
    """

    shape: tuple[int, ...]
    classes: int
    vocabulary: int = 0
    dtype: torch.dtype = torch.float32
    carried: bool = False


class Split(Protocol):
    """One part of a data set; what it yields lies on the device that it was prepared for."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def batches(self, size: int, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of batches of ``size`` examples, from batch ``start`` on: a function of (seed, epoch) alone."""
        ...

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order, never augmented; the last chunk may be smaller."""
        ...


@dataclass(frozen=True)
class Data:
    """The splits of one data set, and what a batch of them is."""

    train: Split
    validation: Split | None
    test: Split
    spec: DataSpec
