"""Error of regularisers over a width, and the dropout rates that they learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evidence import Evidence, method_of
from ..spec import Column
from ..values import ERROR
from .base import Watched, figure
from .style import GREY, legend_below, png, style_of, subplots
from .sweep import Points, over, swept_key


@figure("regularisers")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error of every method over the swept width, as published where it was and as measured; the dropout rates it learned."""
    errors, rates = over(evidence.rows, ERROR), over(evidence.rows, Column("layers.rate"))
    learned = {row.label for row, items in evidence.rows if (method := method_of(items)) and method.learns_rates}
    quoted = any(published is not None for points in errors.values() for _, published, _ in points)
    figure, axes = subplots(2 + quoted, width=3.4, height=3.6)
    *above, below = axes
    for number, label in enumerate(errors):
        style: dict[str, Any] = {**style_of(number), "markersize": 4}
        ours = [(x, error) for x, _, error in errors[label] if error is not None]
        if quoted:
            theirs = [(x, published) for x, published, _ in errors[label] if published is not None]
            above[0].plot(*zip(*theirs, strict=True), label=label, **style)
        if ours:
            at, means, stds = zip(*((x, error.means[0], error.stds[0]) for x, error in ours), strict=True)
            above[-1].errorbar(at, means, stds, label=label, **style)
        if label in learned:
            _rates(below, rates[label], style)
    below.plot([], [], "o-", color=GREY, markersize=4, label="rates: mean of later layers")
    below.plot([], [], "o:", color=GREY, markersize=4, markerfacecolor="none", label="rates: first layer")
    shown = [x for points in errors.values() for x, published, cell in points if published is not None or cell]
    _dress(above, below, swept_key(evidence.rows), shown)
    legend_below(figure, axes)
    return {"png": png(figure)}


def _rates(axis: Any, points: Points, style: dict[str, Any]) -> None:
    """The rates that one method learned: of the first layer, and the mean of the later ones."""
    found = [(x, rate.means[0], sum(rate.means[1:]) / len(rate.means[1:])) for x, _, rate in points if rate]
    if found:
        at, first, later = zip(*found, strict=True)
        axis.plot(at, later, **style)
        axis.plot(at, first, ":", markerfacecolor="none", **style)


def _dress(above: Sequence[Any], below: Any, key: str, shown: Sequence[float]) -> None:
    """Titles, scales and limits, the same for both panels of errors; ``shown`` are the swept values that have a point."""
    from matplotlib.ticker import LogLocator

    for axis, title in zip(above, ["as published", "measured"][-len(above) :], strict=True):
        axis.set(title=title, xlabel=key, ylabel="test error, %", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(LogLocator(subs=(1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8)))
        axis.yaxis.set_minor_formatter("{x:g}")
    limits = [limit for axis in above for limit in axis.get_ylim()]
    margin = 0.05 * (max(shown) - min(shown)) or 0.5
    for axis in above:
        axis.set_ylim(min(limits), max(limits))
    below.set(title="learned dropout rates", xlabel=key, ylabel="mean of p = α / (1 + α)", ylim=(0, None))
    for axis in (*above, below):
        axis.set_xlim(min(shown) - margin, max(shown) + margin)
        axis.grid(alpha=0.3)
