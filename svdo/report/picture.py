"""What a sparse network still reads of its images, drawn with characters: ``python -m svdo.report.picture FOLDER``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from torch import Tensor

from ..cli.run import exit_status
from ..errors import UserError, require
from ..runs import Run, checkpoint

SHADES = " .:-=+*#%@"  # from no unit to the most; any terminal has them


def readers(weight: Tensor) -> Tensor:
    """How many units read each input: the nonzero weights in each column of ``weight`` (units, inputs), (inputs,)."""
    return (weight != 0).sum(0)


def shaded(counts: Tensor) -> str:
    """Counts (height, width) as lines of characters, two a pixel since a character is half as wide as it is high.

    The blank stands for 0 alone, and the darkest character for the largest count.
    """
    most = max(int(counts.max()), 1)
    lines = []
    for row in counts.tolist():
        shades = (SHADES[math.ceil(count * (len(SHADES) - 1) / most)] for count in row)
        lines.append("".join(2 * shade for shade in shades).rstrip())
    return "\n".join(lines)


def picture(name: str, weight: Tensor) -> str:
    """The image of a first layer's inputs, under a line that says what it shows.

    Args:
        name: the layer's.
        weight: its thresholded weight, (units, inputs), the inputs being the pixels of a square image.

    Raises:
        UserError: where the inputs are no such pixels.
    """
    side = math.isqrt(weight.shape[1]) if weight.dim() == 2 else 0
    require(
        side * side == math.prod(weight.shape[1:]),
        f"the first layer, {name}, does not read the pixels of a grey square image, so there is no picture of it",
    )
    counts = readers(weight)
    units, read = int((weight != 0).any(1).sum()), int((counts > 0).sum())
    said = f"{name} reads {read} of {len(counts)} pixels, with {units} of its {len(weight)} units"
    return f"{said}; darker: more units read it, at most {int(counts.max())}\n{shaded(counts.view(side, side))}"


def of_run(folder: Path) -> str:
    """The picture of the last weights that a run kept with ``runtime.snapshots``; raises ``UserError`` where there are none."""
    folder = folder.resolve()
    snapshots = Run(folder.parent.parent, folder.name).snapshots()
    if not snapshots:
        raise UserError(f"{folder} keeps no weights of its epochs; train it with runtime.snapshots=1")
    weights = checkpoint.load(snapshots[max(snapshots)])
    return picture(*next(iter(weights.items())))


def main() -> None:
    """Exit status: 0, or 2 where there is no picture to show."""
    parser = argparse.ArgumentParser("svdo.report.picture", description="Draw what a run's first layer still reads.")
    parser.add_argument("folder", type=Path, help="the folder of a run that was trained with runtime.snapshots")
    with exit_status():
        print(of_run(parser.parse_args().folder))


if __name__ == "__main__":
    main()
