"""Rows that are swept over one setting."""

from __future__ import annotations

from typing import Any

from ..evidence import Evidence, Rows
from ..spec import Column
from ..values import Measured, measure

Points = list[tuple[float, Any, Measured | None]]  # a swept value, the published figure there, ours


def sweeps(evidence: Evidence) -> dict[str, Rows]:
    """The swept rows of each group, without the swept value in its name."""
    found: dict[str, Rows] = {}
    for row, items in evidence.rows:
        for key, (value,) in row.sweep.items():
            found.setdefault(row.group.removesuffix(f"{key.split('.')[-1]}={value}").strip(), []).append((row, items))
    return found


def over(rows: Rows, column: Column) -> dict[str, Points]:
    """By label, at each swept value the published figure and ours."""
    found: dict[str, Points] = {}
    for row, items in rows:
        ((value,),) = row.sweep.values()
        found.setdefault(row.label, []).append((float(value), row.published.get(column.key), measure(items, column)))
    return found


def known(rows: Rows) -> bool:
    """Whether a row has a figure, published or measured."""
    return any(row.published or any(item.record for item in items) for row, items in rows)


def swept_key(rows: Rows) -> str:
    """What is swept, in words."""
    key = next(iter(rows[0][0].sweep)).replace("model.", "")
    return {"k": "width factor k", "width": "units per hidden layer"}.get(key, key)
