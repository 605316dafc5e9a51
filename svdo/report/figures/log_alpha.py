"""Where the log alphas of a network end."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence import Evidence
from .base import Watched, figure
from .style import layer_styles, png, subplots


@figure("log_alpha")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The distribution of log alpha in each layer after training, and the threshold."""
    figure, axes = subplots(len(watched), width=5.2, height=3.6)
    styles = layer_styles(watched)
    for axis, run in zip(axes, watched, strict=True):
        bins = run.seen["bins"]
        for name, counts in zip(run.seen["layers"], run.seen["log_alpha"], strict=True):
            axis.stairs(100.0 * counts / counts.sum(), bins, label=str(name), linewidth=1.4, **styles[str(name)])
        if (threshold := getattr(run.run.config.method, "threshold", None)) is not None:
            axis.axvline(threshold, color="black", linestyle=":", label="removed from here")
        axis.set(
            title=f"{run.title}, {run.method}",
            xlabel=f"log α ({bins[-1]:g} and more in the last bin)",
            ylabel="share of the layer's weights, %",
            yscale="log",
        )
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=5)
    return {"png": png(figure)}
