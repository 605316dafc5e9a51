"""Where the exported network and the images that judge it come from: the run store and the data sets, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import UserError, plain
from ..config import DatasetConfig
from ..data import Split, prepare
from ..fetch import load as load_images
from ..runs import Run
from .files import load

Array = npt.NDArray[np.float32]
CALIBRATION = 500  # training images that int8 is calibrated on


@dataclass(frozen=True)
class Trained:
    """A run's network, plain and in evaluation mode, with images (n, channels, height, width) as it sees them."""

    network: nn.Module
    name: str
    test: Array
    labels: npt.NDArray[np.int64]
    calibration: Array


def trained(run: str, results_dir: str, data_dir: str) -> Trained:
    """The network of a run, given by its folder or its id in ``results_dir``, and its data.

    Raises:
        UserError: where there is no such run, no weights are kept with it, or its data set is not to be had.
    """
    path = Path(run).expanduser()
    store, identifier = (path.resolve().parent.parent, path.resolve().name) if path.is_dir() else (Path(results_dir), run)
    network = plain(load(run, results_dir=results_dir)).eval()
    record = Run(store, identifier).result()
    if record is None:
        raise UserError(f"there is no finished run {identifier} in {store}")
    config = DatasetConfig(**record["config"]["dataset"])
    data = prepare(config, load_images(config.name, Path(data_dir)), torch.device("cpu"))
    labels: npt.NDArray[np.int64] = data.test.labels.numpy()
    return Trained(network, str(record["model"]), _images(data.test), labels, _images(data.train, CALIBRATION))


def _images(split: Split, most: int | None = None) -> Array:
    """The first images of a split, normalised, channels outermost."""
    found, count = [], 0
    for x, _ in split.chunks(500):
        if most is not None and count >= most:
            break
        found.append(x.contiguous().numpy())
        count += len(x)
    return np.ascontiguousarray(np.concatenate(found)[:most], np.float32)
