"""What a measurement is, and the registry that the ``@measure`` line of each measurement's file fills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ...data import Data
from ...errors import UserError

Part = TypeVar("Part", bound=tuple[Any, ...])
Networks = dict[str, list[tuple[nn.Module, Data]]]  # those that a report needs, with their data, one per seed


@dataclass(frozen=True)
class Effort:
    """How much is drawn for a measurement."""

    batches: int = 400  # minibatches that a gradient's variance is taken over,
    separate_batches: int = 20  # with a draw of all weights for each example, of which one takes a minute,
    alpha_batches: int = 60  # and at each of many alphas
    size: int = 1000  # examples in such a minibatch
    samples: int = 30  # noisy passes of a sampled prediction
    steps: int = 40  # training steps that are timed,
    separate_steps: int = 3  # and with a draw of all weights for each example
    blocks: int = 100  # of calls of an exported network, for the fastest and the median one,
    seconds: float = 15.0  # but no more than the slowest format makes in that time


TOY = Effort(
    batches=3, separate_batches=2, alpha_batches=3, size=50, samples=2, steps=2, separate_steps=1, blocks=3, seconds=0.1
)
Measure = Callable[[Networks, Path, Effort], dict[str, Any]]
MEASURES: dict[str, Measure] = {}


def measure(name: str) -> Callable[[Measure], Measure]:
    """Register a function under the name by which ``measure`` in ``conf/report/`` calls it; it gives outcomes by row."""

    def register(made: Measure) -> Measure:
        MEASURES[name] = made
        return made

    return register


def find(name: str) -> Measure:
    """The function that measures what is called ``name``; raises ``UserError`` listing the choices where there is none."""
    if name not in MEASURES:
        raise UserError(f"nothing is measured by {name}; take one of: {', '.join(sorted(MEASURES))}")
    return MEASURES[name]


def timed(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts of a measurement, and on the terminal how far it is: some take most of an hour."""
    for number, part in enumerate(parts, 1):
        clock = time.perf_counter()
        yield part
        print(f"{number}/{len(parts)}  {' '.join(map(str, part))}  {time.perf_counter() - clock:.0f} s", flush=True)
