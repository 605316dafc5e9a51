"""How far a cell is from the published figure."""

from __future__ import annotations

import math
from typing import Any

from .spec import Column
from .values import Measured

DISTANCES = ("reached", "close", "short", "open")


def distance(measured: Measured | None, column: Column, published: Any) -> str:
    """Say reached, close (within the tolerance), short (worse than that) or open (not measured); nothing if none applies."""
    if published is None or column.better == "none" or isinstance(published, list):
        return ""
    if measured is None:
        return "open"
    if not math.isfinite(measured.means[0]):
        return "short"  # nothing left: a ratio that compares with none
    # A published figure is rounded to the digits that it shows, so ours is compared at those digits.
    shown = float(format(measured.means[0], ".0f" if isinstance(published, int) else column.format))
    worse = (shown - published) * (1 if column.better == "lower" else -1)
    if worse <= 0:
        return "reached"
    return "close" if worse <= column.tolerance * abs(published) else "short"
