"""Pictures of a report, each drawn from committed data alone; matplotlib, an extra, is imported where it is used."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..methods import METHODS, Method
from .collect import Evidence, Measured, Planned, Rows, measure
from .spec import Column

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]  # Okabe and Ito
MARKERS = "osD^vP*X<>hd"
LINES = ("-", "--", "-.", ":")
GREY = "#777777"
SHADES = [*COLOURS[:3], "#882255", *COLOURS[4:7], COLOURS[3]]  # eight that are far from GREY, and neighbours from each other
DPI = 110
APART = 1.12  # dense networks, all at a compression of 1, are drawn beside each other by this factor
ERROR, COMPRESSION = Column("test.error", "error %"), Column("compression", "compression")


@dataclass(frozen=True)
class Watched:
    """A run that was looked at closely, and what ``watch`` saw of it."""

    run: Planned
    seen: dict[str, np.ndarray]

    @property
    def method(self) -> str:
        """The method as tables write it."""
        method = self.run.config.method
        assert isinstance(method, Method)
        return method.label

    @property
    def title(self) -> str:
        """The network as papers write it."""
        name = self.run.config.model.name
        return {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}.get(name, name)


Draw = Callable[[Evidence, Sequence[Watched]], dict[str, bytes]]


def tradeoff(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error against compression: every row's mean and spread, the published points, and runs whose threshold moves."""
    labels = list(dict.fromkeys(row.label for row, _ in evidence.rows))
    groups = list(dict.fromkeys(row.group for row, _ in evidence.rows))
    removing = dict.fromkeys(row.label for row, items in evidence.rows if METHODS.get(_name(items), Method).sparsifies)
    colours = dict(zip(removing, itertools.cycle(SHADES), strict=False))
    dense_labels = [label for label in labels if label not in removing]
    figure, axes = _subplots(len(groups), width=5.2, height=5.0)
    for axis, group in zip(axes, groups, strict=True):
        published: set[tuple[Any, Any]] = set()
        for row, planned in evidence.rows:
            if row.group != group:
                continue
            colour = colours.get(row.label, GREY)
            style: dict[str, Any] = {"color": colour, "marker": MARKERS[labels.index(row.label) % len(MARKERS)]}
            error, ratio = measure(planned, ERROR), measure(planned, COMPRESSION)
            aside = 1.0 if row.label in removing else APART ** dense_labels.index(row.label)
            if error and ratio:
                at = aside * ratio.means[0], error.means[0]
                axis.errorbar(*at, _spread(error), _spread(ratio), label=row.label, linestyle="none", **style)
            dense = None if row.label in removing else aside
            point = row.published.get("compression", dense), row.published.get("test.error")
            if None not in point and point not in published:
                published.add(point)
                axis.plot(*point, markerfacecolor="none", linestyle="none", zorder=3, **style)
        for run in watched:
            if run.title == group:
                shown = run.seen["error"] < 1.4 * run.seen["error"].min()
                style = {"color": GREY, "linewidth": 1, "zorder": 0, "label": "one Sparse VD run, other thresholds"}
                axis.plot(run.seen["compression"][shown], run.seen["error"][shown], **style)
        axis.plot([], [], "o", color="black", markerfacecolor="none", label="as published")
        axis.set(title=group, xlabel="compression, |W| / |W ≠ 0|", ylabel="test error, %", xscale="log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100, 200])
        axis.xaxis.set_major_formatter("{x:g}×")
        axis.grid(alpha=0.3)
    _legend_below(figure, axes)
    return {"png": _png(figure)}


def training(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Test error and the sparsity of each layer after every epoch."""
    figure, axes = _subplots(len(watched), width=5.2, height=3.8)
    styles = _layer_styles(watched)
    for axis, run in zip(axes, watched, strict=True):
        lines = run.run.run.epochs()
        epochs, held_out = [line["epoch"] for line in lines], "test" if "test_error" in lines[0] else "validation"
        axis.plot(epochs, [line[f"{held_out}_error"] for line in lines], color="black", label=f"{held_out} error (left)")
        axis.set(title=run.title, xlabel="epoch", ylabel=f"{held_out} error, %", ylim=(0, None))
        right = axis.twinx()
        for name in lines[0]["sparsity"]:
            values = [line["sparsity"][name] for line in lines]
            right.plot(epochs, values, label=f"sparsity of {name} (right)", **styles[name])
        right.set(ylabel="sparsity, %", ylim=(0, 101))
        handles = [*axis.get_lines(), *right.get_lines()]
        axis.legend(
            handles,
            [str(handle.get_label()) for handle in handles],
            fontsize=8,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
            ncols=2,
        )
    return {"png": _png(figure)}


def log_alpha(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The distribution of log alpha in each layer after training, and the threshold."""
    figure, axes = _subplots(len(watched), width=5.2, height=3.6)
    styles = _layer_styles(watched)
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
    return {"png": _png(figure)}


def _layer_styles(watched: Sequence[Watched]) -> dict[str, dict[str, Any]]:
    """A colour and a line for each layer's name, the same in every panel."""
    names = dict.fromkeys(str(name) for run in watched for name in run.seen["layers"])
    return {name: {"color": COLOURS[i % 8], "linestyle": LINES[i % len(LINES)]} for i, name in enumerate(names)}


def thinning(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The first convolution's filters and a piece of the first dense layer while training removes their weights."""
    (run,) = watched
    epochs = run.seen["epochs"]
    chosen = sorted({round(i) - 1 for i in np.geomspace(1, len(epochs), 4)})  # most of it happens early
    figure, axes = _subplots(len(chosen), width=3.0, height=5.0, rows=2, ratios=(1, 1.1))
    for column, index in enumerate(chosen):
        _frame(axes[column], axes[len(chosen) + column], run.seen, index)
    still = _png(figure)

    from matplotlib import pyplot
    from PIL import Image

    frames = []
    for index in range(len(epochs)):
        figure, axes = _subplots(1, width=4.4, height=6.4, rows=2, ratios=(1, 1.1))
        _frame(axes[0], axes[1], run.seen, index)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()).quantize(64))
        pyplot.close(figure)
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=[120] * (len(frames) - 1) + [2500], loop=0)
    return {"png": still, "gif": stream.getvalue()}


def _frame(above: Any, below: Any, seen: dict[str, np.ndarray], index: int) -> None:
    filters, piece = (seen[key][index].astype(np.float32) for key in ("filters", "piece"))
    rows, columns = 4, -(-len(filters) // 4)
    height, width = filters.shape[-2:]
    tiled = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan, dtype=np.float32)
    for number, kernel in enumerate(filters[:, 0]):
        top, left = (number // columns) * (height + 1) + 1, (number % columns) * (width + 1) + 1
        tiled[top : top + height, left : left + width] = kernel
    for axis, values, last in ((above, tiled, seen["filters"][-1]), (below, piece.T, seen["piece"][-1])):
        limit = max(float(np.abs(last.astype(np.float32)).max()), 1e-6)
        axis.imshow(np.sign(values) * np.sqrt(np.abs(values)), cmap="RdBu_r", vmin=-(limit**0.5), vmax=limit**0.5)
        removed = np.ma.masked_where(values != 0.0, np.zeros_like(values))
        axis.imshow(removed, cmap="gray", vmin=-3.0, vmax=1.0)
        axis.set(xticks=[], yticks=[])
    kept = 100.0 * np.count_nonzero(filters) / filters.size, 100.0 * np.count_nonzero(piece) / piece.size
    above.set_title(f"epoch {seen['epochs'][index]}\nfirst convolution, {kept[0]:.0f} % left", fontsize=9)
    below.set_title(f"first dense layer (a piece), {kept[1]:.1f} % left", fontsize=9)


def width(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error of every method and, where it removes weights, compression over the swept width; published figures hollow."""
    sweeps = {group: rows for group, rows in _sweeps(evidence).items() if _known(rows)}
    figure, axes = _subplots(2, width=5.0, height=3.8 * len(sweeps), rows=len(sweeps), ratios=(1,) * len(sweeps))
    for index, (group, rows) in enumerate(sweeps.items()):
        for axis, column in zip(axes[2 * index : 2 * index + 2], (ERROR, COMPRESSION), strict=True):
            for number, (label, points) in enumerate(_over(rows, column).items()):
                ours = [(x, cell) for x, _, cell in points if cell is not None]
                theirs = [(x, published) for x, published, _ in points if published is not None]
                if column is COMPRESSION and not theirs and all(cell.means[0] == 1.0 for _, cell in ours):
                    continue
                style = {**_style(number), "markersize": 5}
                if ours:
                    at, means, stds = zip(*((x, cell.means[0], cell.stds[0]) for x, cell in ours), strict=True)
                    axis.errorbar(at, means, stds, label=label, **style)
                if theirs:
                    named = None if ours else f"{label}, not measured yet"
                    axis.plot(*zip(*theirs, strict=True), linestyle=":", markerfacecolor="none", label=named, **style)
            axis.plot([], [], "o:", color="black", markerfacecolor="none", label="as published")
            axis.set(title=group, xlabel=_swept_key(rows), ylabel="test error, %")
            axis.grid(alpha=0.3)
        axis.set(ylabel="compression, |W| / |W ≠ 0|", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}×")
        axis.yaxis.set_minor_formatter("{x:g}×")
        for axis in axes[2 * index : 2 * index + 2]:
            axis.legend(fontsize=8, frameon=False)
    return {"png": _png(figure)}


def depth(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The sparsity of every layer of each network that lost weights."""
    sparse = [(row, items, found) for row, items in evidence.rows if (found := measure(items, Column("layers.sparsity")))]
    shown = [(row, items, found) for row, items, found in sparse if any(found.means)]
    if not shown:
        return {}
    figure, (axis,) = _subplots(1, width=7.0, height=3.8)
    for number, (row, items, found) in enumerate(shown):
        names = next([layer["name"] for layer in record["layers"]] for item in items if (record := item.record))
        axis.plot(names, found.means, label=f"{row.label}, {row.group}", markersize=4, **_style(number))
    axis.set(ylabel="weights removed, %", ylim=(0, 103))
    axis.tick_params(axis="x", labelrotation=60)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    return {"png": _png(figure)}


def regularisers(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Error of every method over the swept width, as published where it was and as measured; the dropout rates it learned."""
    from matplotlib.ticker import LogLocator

    errors, rates = _over(evidence.rows, ERROR), _over(evidence.rows, Column("layers.rate"))
    learned = {
        row.label
        for row, items in evidence.rows
        if any(isinstance(item, Planned) and item.config.method.name.startswith("vd_") for item in items)
    }
    quoted = any(published is not None for points in errors.values() for _, published, _ in points)
    figure, axes = _subplots(2 + quoted, width=3.4, height=3.6)
    *above, below = axes
    for number, label in enumerate(errors):
        style: dict[str, Any] = {**_style(number), "markersize": 4}
        ours = [(x, error) for x, _, error in errors[label] if error is not None]
        if quoted:
            theirs = [(x, published) for x, published, _ in errors[label] if published is not None]
            above[0].plot(*zip(*theirs, strict=True), label=label, **style)
        if ours:
            at, means, stds = zip(*((x, error.means[0], error.stds[0]) for x, error in ours), strict=True)
            above[-1].errorbar(at, means, stds, label=label, **style)
        found = [(x, rate.means[0], sum(rate.means[1:]) / len(rate.means[1:])) for x, _, rate in rates[label] if rate]
        if found and label in learned:
            at, first, hidden = zip(*found, strict=True)
            below.plot(at, hidden, **style)
            below.plot(at, first, ":", markerfacecolor="none", **style)
    below.plot([], [], "o-", color=GREY, markersize=4, label="rates: mean of later layers")
    below.plot([], [], "o:", color=GREY, markersize=4, markerfacecolor="none", label="rates: first layer")
    key = _swept_key(evidence.rows)
    for axis, title in zip(above, (["as published"] if quoted else []) + ["measured"], strict=True):
        axis.set(title=title, xlabel=key, ylabel="test error, %", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(LogLocator(subs=(1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8)))
        axis.yaxis.set_minor_formatter("{x:g}")
    limits = [limit for axis in above for limit in axis.get_ylim()]
    shown = [x for points in errors.values() for x, published, cell in points if published is not None or cell]
    margin = 0.05 * (max(shown) - min(shown)) or 0.5
    for axis in above:
        axis.set_ylim(min(limits), max(limits))
    below.set(title="learned dropout rates", xlabel=key, ylabel="mean of p = α / (1 + α)", ylim=(0, None))
    for axis in axes:
        axis.set_xlim(min(shown) - margin, max(shown) + margin)
        axis.grid(alpha=0.3)
    _legend_below(figure, axes)
    return {"png": _png(figure)}


def _sweeps(evidence: Evidence) -> dict[str, Rows]:
    """The swept rows of each group, without the swept value in its name."""
    found: dict[str, Rows] = {}
    for row, items in evidence.rows:
        for key, (value,) in row.sweep.items():
            found.setdefault(row.group.removesuffix(f"{key.split('.')[-1]}={value}").strip(), []).append((row, items))
    return found


def _over(rows: Rows, column: Column) -> dict[str, list[tuple[float, Any, Measured | None]]]:
    """By label, at each swept value the published figure and ours."""
    found: dict[str, list[tuple[float, Any, Measured | None]]] = {}
    for row, items in rows:
        ((value,),) = row.sweep.values()
        found.setdefault(row.label, []).append((float(value), row.published.get(column.key), measure(items, column)))
    return found


def _known(rows: Rows) -> bool:
    return any(row.published or any(item.record for item in items) for row, items in rows)


def _swept_key(rows: Rows) -> str:
    key = next(iter(rows[0][0].sweep)).replace("model.", "")
    return {"k": "width factor k", "width": "units per hidden layer"}.get(key, key)


def parameterization(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Minus the lower bound and sparsity after every epoch, with their spread; the variance of theta's gradient over alpha."""
    from matplotlib.ticker import LogLocator

    assert evidence.measured is not None
    figure, (bound, sparse, variance) = _subplots(3, width=3.5, height=3.7)
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
    _legend_below(figure, (bound, sparse, variance))
    return {"png": _png(figure)}


def _minus_bound(line: dict[str, Any]) -> float:
    return float(line["train_loss"])


def _sparsity(line: dict[str, Any]) -> float:
    ratio = line["compression"]
    return 100.0 if ratio is None else 100.0 * (1.0 - 1.0 / ratio)


def kl(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """-KL over log alpha, exact and approximated, and what the approximations miss."""
    assert evidence.measured is not None
    curves = {name: np.array(values, dtype=np.float64) for name, values in evidence.measured["curves"].items()}
    at, exact = curves.pop("log_alpha"), curves.pop("exact")
    figure, (left, right) = _subplots(2, width=5.2, height=3.8)
    left.plot(at, -exact, color="black", linewidth=3, alpha=0.4, label="exact")
    names = {"sigmoid": "sigmoid (2017)", "cubic": "cubic (2015), α ≤ 1", "bound": "lower bound (2015), α ≤ 1"}
    for number, (name, label) in enumerate(names.items()):
        style = {"color": COLOURS[number], "linestyle": ("-", "--", ":")[number], "label": label}
        left.plot(at, -curves[name], **style)
        right.plot(at, exact - curves[name], **style)
    left.set(xlabel="log α", ylabel="−KL, nats")
    right.set(xlabel="log α", ylabel="approximation − exact, of −KL, nats", ylim=(-0.05, 0.05))
    left.legend(fontsize=8, frameon=False)
    right.grid(alpha=0.3)
    return {"png": _png(figure)}


def _style(number: int) -> dict[str, Any]:
    """Colour and marker, a pair of its own for each of the first 64 numbers."""
    return {"color": COLOURS[number % 8], "marker": MARKERS[(number + number // 8) % 8]}


def _name(items: Sequence[Any]) -> str:
    """The method of a row's runs; empty where it has none."""
    return next((item.config.method.name for item in items if isinstance(item, Planned)), "")


DRAW: dict[str, Draw] = {
    "tradeoff": tradeoff,
    "training": training,
    "log_alpha": log_alpha,
    "thinning": thinning,
    "width": width,
    "depth": depth,
    "regularisers": regularisers,
    "kl": kl,
    "parameterization": parameterization,
}


def _subplots(
    columns: int, width: float, height: float, rows: int = 1, ratios: tuple[float, ...] = (1,)
) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height), squeeze=False, layout="constrained", height_ratios=ratios
    )
    return figure, list(axes.flat)


def _legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all axes, each label once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()


def _spread(measured: Measured) -> float | None:
    return measured.stds[0] or None
