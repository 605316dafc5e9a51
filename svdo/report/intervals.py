"""How far a mean over seeds may be off: two-sided 95 % intervals."""

from __future__ import annotations

import math

from ..data import ImageDataset
from .evidence import Evidence, Finding, Planned, method_of
from .measures.estimators import GROUPS
from .spec import Column, Row
from .values import Measured, measure

TEST_IMAGES = 10_000  # of each of the data sets
Z = 1.959964  # the 97.5 % quantile of the normal distribution
# and of Student's t, by degrees of freedom from 1 on
STUDENT = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom, to a thousandth."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    # Cornish and Fisher's expansion about the normal quantile.
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def half_width(evidence: Evidence, row: Row, items: list[Planned | Finding], column: Column, found: Measured) -> float:
    """Half of the interval about a cell's mean; 0 where nothing tells it.

    The spread over seeds is pooled over the row and its siblings: rows of its group with its method, or where none of those has
    several seeds, all of its group; of ratios, relative to their means. A test error is never surer than drawing the test
    images, of which a mean over seeds sees the same ones. A measurement on one network knows its standard error.
    """
    mean = found.means[0]
    if not math.isfinite(mean):
        return 0.0
    known = found.n == 1 and found.stds[0] > 0.0
    half = student(GROUPS - 1) * found.stds[0] if known else _over_seeds(evidence, row, items, column, found)
    if column.key in ("test.error", "test.accuracy"):
        half = max(half, Z * math.sqrt(mean * (100.0 - mean) / _test_images(items)))
    return half


def _over_seeds(evidence: Evidence, row: Row, items: list[Planned | Finding], column: Column, found: Measured) -> float:
    method = method_of(items)
    group = [others for other, others in evidence.rows if other.group == row.group]
    alike = [others for others in group if (its := method_of(others)) and method and its.name == method.name]
    relative = "%" not in column.label
    for siblings in (alike, group):
        cells = [
            cell for others in siblings if (cell := measure(others, column)) and cell.n > 1 and math.isfinite(cell.means[0])
        ]
        freedom = sum(cell.n - 1 for cell in cells)
        if freedom:
            squares = sum(
                (cell.n - 1) * (cell.stds[0] / (cell.means[0] if relative else 1.0)) ** 2 for cell in cells if cell.means[0]
            )
            deviation = math.sqrt(squares / freedom) * (abs(found.means[0]) if relative else 1.0)
            return student(freedom) * deviation / math.sqrt(found.n)
    return 0.0


def _test_images(items: list[Planned | Finding]) -> int:
    """As many as the run was tested on; measurements are made on whole test sets of 10 000."""
    for item in items:
        if isinstance(item, Planned) and isinstance(item.config.dataset, ImageDataset):
            return item.config.dataset.test_subset or TEST_IMAGES
    return TEST_IMAGES
