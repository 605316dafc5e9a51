"""Sparsity from the first layer to the last."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence import Evidence
from ..spec import Column
from ..values import measure
from .base import Watched, figure
from .style import png, style_of, subplots


@figure("depth")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The sparsity of every layer of each network that lost weights."""
    sparse = [(row, items, found) for row, items in evidence.rows if (found := measure(items, Column("layers.sparsity")))]
    shown = [(row, items, found) for row, items, found in sparse if any(found.means)]
    if not shown:
        return {}
    figure, (axis,) = subplots(1, width=7.0, height=3.8)
    for number, (row, items, found) in enumerate(shown):
        names = next([layer["name"] for layer in record["layers"]] for item in items if (record := item.record))
        axis.plot(names, found.means, label=f"{row.label}, {row.group}", markersize=4, **style_of(number))
    axis.set(ylabel="weights removed, %", ylim=(0, 103))
    axis.tick_params(axis="x", labelrotation=60)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    return {"png": png(figure)}
