"""The schedules of the 2017 authors, at their golden epochs and at the edges of their domain."""

from __future__ import annotations

from itertools import pairwise

import pytest

from svdo.math.schedule import kl_weight, learning_rate_factor


@pytest.mark.parametrize(
    ("epoch", "weight"),
    [(0, 0.0), (4, 0.0), (5, 0.0), (6, 1 / 15), (12, 7 / 15), (19, 14 / 15), (20, 1.0), (21, 1.0), (200, 1.0)],
)
def test_kl_weight_is_rw_linear_of_the_authors(epoch: int, weight: float) -> None:
    assert kl_weight(epoch / 200, start=5 / 200, full=20 / 200) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (99, 1.0), (100, 1.0), (101, 0.99), (150, 0.5), (190, 0.1), (200, 0.0)]
)
def test_learning_rate_is_flat_to_half_and_then_linear_to_0(epoch: int, factor: float) -> None:
    assert learning_rate_factor(epoch / 200, flat=0.5) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (1, 0.995), (100, 0.5), (200, 0.0)])
def test_learning_rate_without_flat_part_is_linear_to_0(epoch: int, factor: float) -> None:
    assert learning_rate_factor(epoch / 200, flat=0.0) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_learning_rate_that_is_flat_throughout_stays_1(progress: float) -> None:
    assert learning_rate_factor(progress, flat=1.0) == 1.0


@pytest.mark.parametrize("progress", [0.0, 1e-9, 0.5, 1.0])
def test_kl_weight_without_warm_up_is_1_from_the_first_step(progress: float) -> None:
    assert kl_weight(progress, start=0.0, full=0.0) == 1.0


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.2, 0.0), (0.5, 1.0), (0.8, 1.0)])
def test_kl_weight_with_equal_start_and_full_is_a_step(progress: float, weight: float) -> None:
    assert kl_weight(progress, start=0.5, full=0.5) == weight


def test_kl_weight_that_is_full_only_at_the_end_rises_all_the_way() -> None:
    assert [kl_weight(x, start=0.0, full=1.0) for x in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, 0.0), (0.1, 0.0), (0.2, 1.5), (0.3, 3.0), (0.5, 2.0), (0.6, 1.5), (0.7, 1.0), (1.0, 1.0)]
)
def test_kl_weight_can_rise_beyond_1_and_settle(progress: float, weight: float) -> None:
    assert kl_weight(progress, start=0.1, full=0.3, peak=3.0, settled=0.7) == pytest.approx(weight, abs=1e-12)


def test_both_schedules_stay_in_0_to_1_and_are_monotone() -> None:
    steps = [i / 997 for i in range(998)]
    for flat in (0.0, 0.3, 1.0):
        factors = [learning_rate_factor(x, flat) for x in steps]
        assert all(1.0 >= a >= b >= 0.0 for a, b in pairwise(factors))
    for start, full in ((0.0, 0.0), (0.0, 1.0), (0.025, 0.1)):
        shares = [kl_weight(x, start, full) for x in steps]
        assert all(0.0 <= a <= b <= 1.0 for a, b in pairwise(shares))
