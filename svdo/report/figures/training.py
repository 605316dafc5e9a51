"""A training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence

from ..evidence import Evidence
from .base import Watched, figure
from .style import layer_styles, png, subplots


@figure("training")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """Test error and the sparsity of each layer after every epoch."""
    figure, axes = subplots(len(watched), width=5.2, height=3.8)
    styles = layer_styles(watched)
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
    return {"png": png(figure)}
