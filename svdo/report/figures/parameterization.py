"""Additive noise against multiplicative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evidence import Evidence, Planned
from .base import Watched, figure
from .style import COLOURS, MARKERS, legend_below, png, subplots


@figure("parameterization")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Minus the lower bound and sparsity after every epoch, with their spread; the variance of theta's gradient over alpha."""
    from matplotlib.ticker import LogLocator

    assert evidence.measured is not None
    figure, (bound, sparse, variance) = subplots(3, width=3.5, height=3.7)
    for number, (row, items) in enumerate(item for item in evidence.rows if not item[0].measured):
        runs = [run.run.epochs() for run in items if isinstance(run, Planned) and run.record]
        style: dict[str, Any] = {"color": COLOURS[number], "linestyle": ("-", "--", ":")[number], "label": row.label}
        for axis, quantity in ((bound, _minus_bound), (sparse, _sparsity)) if runs else ():
            values = np.array([[quantity(line) for line in lines] for lines in runs])
            mean, spread, epochs = values.mean(0), values.std(0, ddof=len(values) > 1), [line["epoch"] for line in runs[0]]
            axis.plot(epochs, mean, **style)
            axis.fill_between(epochs, mean - spread, mean + spread, color=COLOURS[number], alpha=0.2, linewidth=0)
    for number, (name, label) in enumerate({"additive": "additive", "multiplicative": "original (multiplicative)"}.items()):
        style = {"color": COLOURS[number], "linestyle": "-" if number == 0 else "--", "marker": MARKERS[number]}
        by_alpha = {float(at): value for at, value in evidence.measured[name][0]["variance"].items()}
        variance.plot(list(by_alpha), list(by_alpha.values()), label=label, markersize=4, **style)
    bound.set(xlabel="epoch", ylabel="− lower bound per example, nats", yscale="log")
    bound.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bound.yaxis.set_major_formatter("{x:g}")
    bound.yaxis.set_minor_formatter("")
    sparse.set(xlabel="epoch", ylabel="weights with log α ≥ 3, %")
    variance.set(xlabel="log α", xticks=range(-8, 5, 2), ylabel="gradient variance of θ, first layer", yscale="log")
    variance.set_title("one dense network, one α for all", fontsize="medium")
    for axis in (bound, sparse, variance):
        axis.grid(alpha=0.3)
    legend_below(figure, (bound, sparse, variance))
    return {"png": png(figure)}


def _minus_bound(line: dict[str, Any]) -> float:
    return float(line["train_loss"])


def _sparsity(line: dict[str, Any]) -> float:
    ratio = line["compression"]
    return 100.0 if ratio is None else 100.0 * (1.0 - 1.0 / ratio)
