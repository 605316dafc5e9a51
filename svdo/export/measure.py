"""Bytes, latency and test error of what was exported, measured side by side in one process."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..errors import UserError

Array = npt.NDArray[np.float32]
Runner = Callable[[Array], Array]  # (n, ...) float32 -> (n, classes)

BATCHES = (1, 1000)
BLOCKS = 30
BLOCK_SECONDS = 0.004  # a block repeats a call for at least so long, so that a clock's grain does not show
BUDGET = 3.0  # seconds of a runner and a size: slower ones have fewer blocks, but not fewer than ...
FEWEST = 5
CHUNK = 1000


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call, in the fastest block and in the median one: what it takes, and how quiet the machine was."""

    best: float
    median: float


def torch_runner(network: nn.Module) -> Runner:
    """A network in evaluation mode as torch runs it, eagerly."""

    def run(x: Array) -> Array:
        with torch.inference_mode():
            result: Array = network(torch.from_numpy(x)).numpy()
            return result

    return run


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latencies(
    runners: Mapping[str, Runner],
    images: Array,
    batches: Sequence[int] = BATCHES,
    blocks: int = BLOCKS,
    budget: float | None = None,
) -> dict[str, dict[int, Latency]]:
    """How long each of ``runners`` takes for the first images, on one thread.

    They take turns, block by block, so that what else the machine does meets all of them.

    Args:
        runners: by name.
        images: (n, ...); where they are fewer than a batch, they are repeated.
        batches: sizes to measure.
        blocks: per runner and size; fewer, but no fewer than ``FEWEST``, where the slowest would take longer than
        budget: in seconds, by default ``BUDGET``.

    Returns:
        For each name and size.
    """
    result: dict[str, dict[int, Latency]] = {name: {} for name in runners}
    with one_thread():
        for size in batches:
            x = np.ascontiguousarray(images[np.arange(size) % len(images)])
            repeats = {name: _repeats(run, x) for name, run in runners.items()}
            seconds: dict[str, list[float]] = {name: [] for name in runners}
            slowest = max(repeats[name] * _block(run, x, 1) for name, run in runners.items())
            for _ in range(min(blocks, max(FEWEST, int((budget or BUDGET) / slowest)))):
                for name, run in runners.items():
                    seconds[name].append(_block(run, x, repeats[name]))
            for name, found in seconds.items():
                result[name][size] = Latency(1e6 * min(found), 1e6 * statistics.median(found))
    return result


def _block(run: Runner, x: Array, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(x)
    return (time.perf_counter() - start) / repeats


def _repeats(run: Runner, x: Array) -> int:
    """How often a block calls; the first call, which prepares much, is not timed."""
    run(x)
    return max(1, int(BLOCK_SECONDS / max(_block(run, x, 1), 1e-7)))


def outputs(run: Runner, images: Array) -> Array:
    """What ``run`` gives for all images, (n, classes)."""
    return np.concatenate([run(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)])


def error(run: Runner, images: Array, labels: npt.NDArray[np.int64]) -> float:
    """Test error in percent."""
    return 100.0 * float((outputs(run, images).argmax(1) != labels).mean())


def check(run: Runner, reference: Runner, images: Array, tolerance: float, said: str) -> float:
    """The largest difference from ``reference``, as a share of its largest output.

    Raises:
        UserError: where it exceeds ``tolerance``: then what was exported computes something else.
    """
    found, expected = outputs(run, images).astype(np.float64), outputs(reference, images).astype(np.float64)
    largest = float(np.abs(expected).max(initial=0.0))
    difference = float(np.abs(found - expected).max(initial=0.0)) / max(largest, 1e-30)
    if not difference <= tolerance:
        raise UserError(f"{said} computes something else than the network: outputs differ by {difference:.1e}")
    return difference
