"""From a declared table and the run store to cells: mean and spread over seeds, and what is still missing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..compose import compose
from ..config import Config
from ..runs import Record, Run, finished
from .spec import Column, Report, Row


@dataclass(frozen=True)
class Planned:
    """One run a table needs: the overrides that name it, its configuration, and its record once there is one."""

    overrides: tuple[str, ...]
    config: Config
    record: Record | None

    @property
    def command(self) -> str:
        """The line that trains it."""
        return " ".join(["svdo-run", *(_quoted(item) for item in self.overrides)])


@dataclass(frozen=True)
class Measured:
    """A quantity over a row's finished runs: one mean and one sample standard deviation per value (several for layers)."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    n: int


def runs(report: Report, row: Row, extra: Sequence[str] = ()) -> list[Planned]:
    """The runs of a row, one per seed; empty for a row that is quoted only."""
    if row.overrides is None:
        return []
    planned = {}  # by id: an extra seed=... makes one run of all seeds
    for seed in report.seeds:
        overrides = (*report.overrides, *row.overrides, f"seed={seed}", *extra)
        config = compose(overrides)
        planned[config.id] = Planned(overrides, config, Run(config.results_dir, config.id).result())
    return list(planned.values())


def measure(planned: Sequence[Planned], column: Column) -> Measured | None:
    """The column's quantity over the runs that are done; None where none is, or where a value is undefined."""
    values = [_value(run.record, column.key) for run in planned if run.record is not None]
    if not values or any(item is None for value in values for item in value):
        return None
    by_part = list(zip(*values, strict=True))
    means = tuple(statistics.fmean(part) for part in by_part)
    stds = tuple(statistics.stdev(part) if len(part) > 1 else 0.0 for part in by_part)
    return Measured(means, stds, len(values))


def _value(record: Record, key: str) -> list[Any]:
    if key == "layers":
        return [layer["sparsity"] for layer in record["layers"]]
    value: Any = record
    for part in key.split("."):
        value = value[part]
    return [value]


def verdict(measured: Measured | None, column: Column, published: Any) -> str:
    """Say reached, close (within the tolerance), short (worse than that) or open (not measured); nothing if none applies."""
    if published is None or column.better == "none" or isinstance(published, list | str):
        return ""
    if measured is None:
        return "open"
    # A published figure is rounded to the digits that it shows, so ours is compared at those digits.
    shown = float(f"{measured.means[0]:{column.format}}")
    worse = (shown - published) * (1 if column.better == "lower" else -1)
    if worse <= 0:
        return "reached"
    return "close" if worse <= column.tolerance * abs(published) else "short"


def expected_seconds(config: Config) -> float | None:
    """Time of a run from the epochs of finished runs of its model, data set and method; None where there are none."""
    rates = []
    for record in finished(config.results_dir):
        same = (record["model"], record["dataset"], record["method"]) == (
            config.model.name,
            config.dataset.name,
            config.method.name,
        )
        own_size = record["config"]["model"] == config.as_dict()["model"]
        if same and own_size and record["epochs"]:
            rates.append(record["seconds"] / record["epochs"] * record["config"]["train"]["batch_size"])
    return statistics.median(rates) * config.train.epochs / config.train.batch_size if rates else None


def _quoted(override: str) -> str:
    return f"'{override}'" if any(character in override for character in '{}*? "') else override
