"""What figures share: colours, markers, axes, the bytes of a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from ..values import Measured
from .base import Watched

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]  # Okabe and Ito
MARKERS = "osD^vP*X<>hd"
LINES = ("-", "--", "-.", ":")
GREY = "#777777"
SHADES = [*COLOURS[:3], "#882255", *COLOURS[4:7], COLOURS[3]]  # eight that are far from GREY, and neighbours from each other
DPI = 110


def style_of(number: int) -> dict[str, Any]:
    """Colour and marker, a pair of its own for each of the first 64 numbers."""
    return {"color": COLOURS[number % 8], "marker": MARKERS[(number + number // 8) % 8]}


def layer_styles(watched: Sequence[Watched]) -> dict[str, dict[str, Any]]:
    """A colour and a line for each layer's name, the same in every panel."""
    names = dict.fromkeys(str(name) for run in watched for name in run.seen["layers"])
    return {name: {"color": COLOURS[i % 8], "linestyle": LINES[i % len(LINES)]} for i, name in enumerate(names)}


def subplots(
    columns: int, width: float, height: float, rows: int = 1, ratios: tuple[float, ...] = (1,)
) -> tuple[Any, list[Any]]:
    """A figure of panels of that size in inches, and its axes, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height), squeeze=False, layout="constrained", height_ratios=ratios
    )
    return figure, list(axes.flat)


def legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all axes, each label once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def png(figure: Any) -> bytes:
    """The picture's bytes; it is closed."""
    from matplotlib import pyplot

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()


def spread(measured: Measured) -> float | None:
    """The length of an error bar; None where there is none."""
    return measured.stds[0] or None
