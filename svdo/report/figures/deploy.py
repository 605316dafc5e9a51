"""Test error against bytes and against the time of an answer, by method and format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evidence import Evidence
from ..spec import Column
from ..values import measure
from .base import Watched, figure
from .style import COLOURS, MARKERS, legend_below, png, subplots

AXES = {
    "bytes": "bytes of the file",
    "one.best": "µs for one image, one thread",
    "many.best": "µs for 1000 images, one thread",
}
APART = 0.2  # how far beyond the points an axis of errors reaches, in percent


@figure("deploy")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """A row of panels for each network: a colour for each method, a marker for each format."""
    groups = list(dict.fromkeys(row.group for row, _ in evidence.rows))
    parts = [row.label.partition(", ")[::2] for row, _ in evidence.rows]
    colours = dict(zip(dict.fromkeys(method for method, _ in parts), COLOURS, strict=False))
    markers = dict(zip(dict.fromkeys(way for _, way in parts), MARKERS, strict=False))
    figure, axes = subplots(len(AXES), width=4.4, height=3.6 * len(groups), rows=len(groups), ratios=(1,) * len(groups))
    for number, group in enumerate(groups):
        panels = axes[number * len(AXES) : (number + 1) * len(AXES)]
        for panel, (key, label) in zip(panels, AXES.items(), strict=True):
            _points(panel, evidence, group, key, colours, markers)
            panel.set(title=group, xlabel=label, ylabel="test error, %", xscale="log")
            panel.margins(y=APART)
            panel.grid(alpha=0.3)
    for method, colour in colours.items():
        axes[0].plot([], [], "s", color=colour, label=method)
    for way, marker in markers.items():
        axes[0].plot([], [], marker, color="black", markerfacecolor="none", label=way)
    legend_below(figure, axes)
    return {"png": png(figure)}


def _points(axis: Any, evidence: Evidence, group: str, key: str, colours: dict[str, str], markers: dict[str, str]) -> None:
    for row, items in evidence.rows:
        method, _, way = row.label.partition(", ")
        at, error = measure(items, Column(key, key)), measure(items, Column("error", "error"))
        if row.group == group and at and error:
            axis.plot(at.means[0], error.means[0], markers[way], color=colours[method], alpha=0.8)
