"""Error and compression over a width."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence import Evidence
from ..values import COMPRESSION, ERROR
from .base import Watched, figure
from .style import png, style_of, subplots
from .sweep import known, over, sweeps, swept_key


@figure("width")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error of every method and, where it removes weights, compression over the swept width; published figures hollow."""
    swept = {group: rows for group, rows in sweeps(evidence).items() if known(rows)}
    figure, axes = subplots(2, width=5.0, height=3.8 * len(swept), rows=len(swept), ratios=(1,) * len(swept))
    for index, (group, rows) in enumerate(swept.items()):
        for axis, column in zip(axes[2 * index : 2 * index + 2], (ERROR, COMPRESSION), strict=True):
            for number, (label, points) in enumerate(over(rows, column).items()):
                ours = [(x, cell) for x, _, cell in points if cell is not None]
                theirs = [(x, published) for x, published, _ in points if published is not None]
                if column is COMPRESSION and not theirs and all(cell.means[0] == 1.0 for _, cell in ours):
                    continue
                style = {**style_of(number), "markersize": 5}
                if ours:
                    at, means, stds = zip(*((x, cell.means[0], cell.stds[0]) for x, cell in ours), strict=True)
                    axis.errorbar(at, means, stds, label=label, **style)
                if theirs:
                    named = None if ours else f"{label}, not measured yet"
                    axis.plot(*zip(*theirs, strict=True), linestyle=":", markerfacecolor="none", label=named, **style)
            axis.plot([], [], "o:", color="black", markerfacecolor="none", label="as published")
            axis.set(title=group, xlabel=swept_key(rows), ylabel="test error, %")
            axis.grid(alpha=0.3)
        axis.set(ylabel="compression, |W| / |W ≠ 0|", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}×")
        axis.yaxis.set_minor_formatter("{x:g}×")
        for axis in axes[2 * index : 2 * index + 2]:
            axis.legend(fontsize=8, frameon=False)
    return {"png": png(figure)}
