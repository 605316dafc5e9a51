"""Pure functions of progress, the share of training done, in [0, 1]."""

from __future__ import annotations


def reached(share: float, step: int, steps: int) -> bool:
    """Whether that share of all ``steps`` is done when ``step`` of them are, and was not one step earlier."""
    return step - 1 < share * steps <= step


def learning_rate_factor(progress: float, flat: float) -> float:
    """1 for the first ``flat`` share of training, then linear to 0 at its end.

    With 200 epochs, ``flat=0.5`` is the 2017 authors' schedule for LeNet-300-100, ``flat=0`` theirs for LeNet-5.
    """
    if progress <= flat:
        return 1.0
    return (1.0 - min(progress, 1.0)) / (1.0 - flat)


def kl_weight(progress: float, start: float, full: float, peak: float = 1.0, settled: float = 1.0) -> float:
    """Warm-up of the KL term: 0 up to ``start``, linear to ``peak`` at ``full``, linear to 1 at ``settled``, then 1.

    With 200 epochs, ``start=5/200``, ``full=20/200`` and the default peak of 1 give the 2017 authors' ``rw_linear``: 0 at
    epochs 0 to 5, 1/15 at epoch 6, 14/15 at epoch 19, 1 from epoch 20.
    """
    if progress >= settled:
        return 1.0
    if progress >= full:
        return peak + (1.0 - peak) * (progress - full) / (settled - full)
    return 0.0 if progress <= start else peak * (progress - start) / (full - start)
