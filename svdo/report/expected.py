"""How long a run will take, from those that are done."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..data import Dataset
from ..layers import weight_layers
from ..models import Model, outline
from ..runs import Record


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take, and the runs that say so."""

    seconds: float  # of one core; on a GPU, of that
    runs: int
    precisions: tuple[str, ...]  # those of the runs
    on_gpu: bool = False

    def __str__(self) -> str:
        return f"{self.amount}, from {self.runs} run{'s' * (self.runs > 1)}, {' and '.join(self.precisions)}"

    @property
    def amount(self) -> str:
        """The time alone, in words."""
        return f"{self.seconds / 60:.1f} {'minutes on a GPU' if self.on_gpu else 'core-minutes'}"


def expected(config: Config, records: Sequence[Record], device: str = "cpu", precision: str = "") -> Expected | None:
    """Time of a run from the epochs of what ``device`` (cpu or cuda) finished of its network and data set; None without.

    Runs of the same method say more than others, then those of the same ``precision`` (empty: whichever): where there are some,
    they alone count. Where this width was never trained, other widths of the network count, their time taken as proportional to
    their weights. Times of a CPU are those of all its threads together, so that runs on one thread and on two compare.
    """
    wanted = config.as_dict()
    known = [
        r
        for r in records
        if r["epochs"]
        and r["model"] == config.model.name
        and _agrees(r["config"]["dataset"], wanted["dataset"])
        and r["provenance"]["device"].startswith("cpu") == (device == "cpu")
    ]
    known = [r for r in known if r["method"] == config.method.name] or known
    alike = [r for r in known if _agrees(r["config"]["model"], wanted["model"])]
    scaled = [] if alike else known
    chosen = [r for r in alike or known if r["provenance"]["precision"] == precision] or alike or known
    if not chosen:
        return None
    weights = _weights(config) if scaled else 1
    rates = [
        core_seconds(r) * (weights / r["weights"] if scaled else 1.0) / r["epochs"] * r["config"]["train"]["batch_size"]
        for r in chosen
    ]
    seconds = statistics.median(rates) * config.train.epochs / config.train.batch_size
    return Expected(seconds, len(chosen), tuple(sorted({r["provenance"]["precision"] for r in chosen})), device != "cpu")


def core_seconds(record: Record) -> float:
    """The time of a run: on a CPU that of its threads together; on a GPU, seconds."""
    if not record["provenance"]["device"].startswith("cpu"):
        return float(record["seconds"])
    # Older records count the threads of the last of their processes throughout.
    return float(record.get("core_seconds", record["seconds"] * record["provenance"]["threads"]))


def _agrees(recorded: Record, wanted: Record) -> bool:
    """In all that the record knows: it can be older than a setting."""
    return all(wanted.get(key) == value for key, value in recorded.items())


def _weights(config: Config) -> int:
    assert isinstance(config.model, Model)
    assert isinstance(config.dataset, Dataset)
    known = config.dataset.outline()
    if known is None:
        return 0
    network = outline(config.model, known[0])
    return sum(layer.weight.numel() for _, layer in weight_layers(network))
