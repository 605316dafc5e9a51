"""The picture of a first layer, held against counts made by hand."""

from pathlib import Path

import pytest
import torch

from svdo.errors import UserError
from svdo.report.picture import SHADES, of_run, picture, readers, shaded
from svdo.runs import checkpoint


def test_an_input_is_read_by_the_units_with_a_weight_on_it() -> None:
    weight = torch.tensor([[0.0, -1.0, 2.0, -0.0], [0.0, 3.0, 0.0, 0.0]])
    assert readers(weight).tolist() == [0, 2, 1, 0]


def test_blank_is_nothing_and_darkest_is_most() -> None:
    lines = shaded(torch.tensor([[0, 1], [500, 1000]])).splitlines()
    assert lines[0] == "  " + 2 * SHADES[1], "a single unit among a thousand is still seen"
    assert lines[1][2:] == 2 * SHADES[-1]
    assert shaded(torch.zeros(2, 3, dtype=torch.long)) == "\n"


def test_the_line_above_counts_pixels_and_units() -> None:
    weight = torch.zeros(5, 9)
    weight[1, 4], weight[1, 8], weight[3, 8] = 1.0, -1.0, 0.5
    head, *image = picture("fc1", weight).split("\n")
    assert head == "fc1 reads 2 of 9 pixels, with 2 of its 5 units; darker: more units read it, at most 2"
    assert [len(line) for line in image] == [0, 4, 6]


@pytest.mark.parametrize("shape", [(3, 10), (20, 1, 5, 5)])
def test_what_reads_no_square_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="the first layer, it, does not read the pixels"):
        picture("it", torch.ones(shape))


def test_a_runs_picture_is_of_the_last_epoch_that_it_kept(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "it"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"runtime\.snapshots=1"):
        of_run(folder)
    for epoch, left in ((9, 4), (10, 1)):
        weight = torch.zeros(2, 4)
        weight[0, :left] = 1.0
        checkpoint.save(folder / f"epoch-{epoch}.pt", {"fc1": weight, "fc2": torch.ones(3, 2)})
    assert of_run(folder).startswith("fc1 reads 1 of 4 pixels, with 1 of its 2 units")
