"""A network while training removes its weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evidence import Evidence
from .base import Watched, figure
from .style import png, subplots


@figure("thinning")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """The first convolution's filters and a piece of the first dense layer while training removes their weights."""
    (run,) = watched
    epochs = run.seen["epochs"]
    chosen = sorted({round(i) - 1 for i in np.geomspace(1, len(epochs), 4)})  # most of it happens early
    figure, axes = subplots(len(chosen), width=3.0, height=5.0, rows=2, ratios=(1, 1.1))
    for column, index in enumerate(chosen):
        _frame(axes[column], axes[len(chosen) + column], run.seen, index)
    still = png(figure)

    from matplotlib import pyplot
    from PIL import Image

    frames = []
    for index in range(len(epochs)):
        figure, axes = subplots(1, width=4.4, height=6.4, rows=2, ratios=(1, 1.1))
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
