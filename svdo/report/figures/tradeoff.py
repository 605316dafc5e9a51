"""Error against compression."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..evidence import Evidence, method_of
from ..values import COMPRESSION, ERROR, measure
from .base import Watched, figure
from .style import GREY, MARKERS, SHADES, legend_below, png, spread, subplots

APART = 1.12  # dense networks, all at a compression of 1, are drawn beside each other by this factor


@figure("tradeoff")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error against compression: every row's mean and spread, the published points, and runs whose threshold moves."""
    labels = list(dict.fromkeys(row.label for row, _ in evidence.rows))
    groups = list(dict.fromkeys(row.group for row, _ in evidence.rows))
    removing = dict.fromkeys(row.label for row, items in evidence.rows if (method := method_of(items)) and method.sparsifies)
    colours = dict(zip(removing, itertools.cycle(SHADES), strict=False))
    dense_labels = [label for label in labels if label not in removing]
    styles: dict[str, dict[str, Any]] = {
        label: {"color": colours.get(label, GREY), "marker": MARKERS[number % len(MARKERS)], "linestyle": "none"}
        for number, label in enumerate(labels)
    }
    aside = {label: APART**number for number, label in enumerate(dense_labels)}
    figure, axes = subplots(len(groups), width=5.2, height=5.0)
    for axis, group in zip(axes, groups, strict=True):
        _points(axis, evidence, group, styles, aside)
        for run in watched:
            if run.title == group:
                shown = run.seen["error"] < 1.4 * run.seen["error"].min()
                line = {"color": GREY, "linewidth": 1, "zorder": 0, "label": "one Sparse VD run, other thresholds"}
                axis.plot(run.seen["compression"][shown], run.seen["error"][shown], **line)
        axis.plot([], [], "o", color="black", markerfacecolor="none", label="as published")
        axis.set(title=group, xlabel="compression, |W| / |W ≠ 0|", ylabel="test error, %", xscale="log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100, 200])
        axis.xaxis.set_major_formatter("{x:g}×")
        axis.grid(alpha=0.3)
    legend_below(figure, axes)
    return {"png": png(figure)}


def _points(axis: Any, evidence: Evidence, group: str, styles: dict[str, dict[str, Any]], aside: dict[str, float]) -> None:
    """Ours with their spread and each published point once; ``aside`` are the labels of dense networks."""
    published: set[tuple[Any, Any]] = set()
    for row, planned in evidence.rows:
        if row.group != group:
            continue
        style = styles[row.label]
        error, ratio = measure(planned, ERROR), measure(planned, COMPRESSION)
        if error and ratio:
            at = aside.get(row.label, 1.0) * ratio.means[0], error.means[0]
            axis.errorbar(*at, spread(error), spread(ratio), label=row.label, **style)
        point = row.published.get("compression", aside.get(row.label)), row.published.get("test.error")
        if None not in point and point not in published:
            published.add(point)
            axis.plot(*point, markerfacecolor="none", zorder=3, **style)
