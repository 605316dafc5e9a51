"""A split that is two tensors, whatever they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The source of an epoch's order and augmentation, a function of (seed, epoch) alone."""
    return torch.Generator().manual_seed((seed << 20) + epoch)


@dataclass(frozen=True)
class TensorSplit:
    """``inputs`` (N, ...) with ``targets`` (N, ...), on the device of training; an epoch is a shuffle of them."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled epoch from batch ``start`` on: (size, ...) of both; a last partial batch is dropped."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch)).to(self.inputs.device)
        for first in range(start * size, len(self) - size + 1, size):
            chosen = order[first : first + size]
            yield self.inputs[chosen], self.targets[chosen]

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order; the last chunk may be smaller."""
        yield from zip(self.inputs.split(size), self.targets.split(size), strict=True)
