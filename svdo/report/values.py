"""From records to cells: mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..runs import Record
from .evidence import Finding, Planned
from .spec import Column

ERROR, COMPRESSION = Column("test.error", "error %"), Column("compression", "compression")


@dataclass(frozen=True)
class Measured:
    """A quantity over a row's finished runs: one mean and one sample standard deviation per value (several for layers).

    A mean is infinite where no run has anything left to divide by, and no number where that is so of some. The single
    outcome of a measurement has the standard error that it knows.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]
    n: int


def measure(planned: Sequence[Planned | Finding], column: Column) -> Measured | None:
    """The column's quantity over the runs that are done and have it; None where none has."""
    records = [record for run in planned if (record := run.record) is not None]
    values = [value for record in records if (value := _value(record, column.key))]
    if not values:
        return None
    by_part = list(zip(*values, strict=True))
    means = tuple(math.nan if len({math.isinf(v) for v in part}) > 1 else statistics.fmean(part) for part in by_part)
    known = max(record.get("spread", {}).get(column.key, 0.0) for record in records)
    stds = tuple(statistics.stdev(part) if len(part) > 1 and math.isfinite(sum(part)) else known for part in by_part)
    return Measured(means, stds, len(values))


def _value(record: Record, key: str) -> list[float]:
    """One number, or several; none where the record is older than the quantity, infinity where nothing is left to divide by."""
    if key.startswith("layers."):
        values = [layer.get(key.removeprefix("layers.")) for layer in record["layers"]]
        return [] if None in values else values
    if key.endswith(".accuracy"):
        return [100.0 - error for error in _value(record, key.replace("accuracy", "error"))]
    value: Any = record
    for part in key.split("."):
        if part not in value:
            return []
        value = value[part]
    return value if isinstance(value, list) else [math.inf if value is None else value]
