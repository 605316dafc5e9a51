"""Where the exported network and the images that judge it come from: the run store and the data sets, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..conversion import plain
from ..data import Dataset, Split
from ..errors import require
from ..runs import Run, config_of
from .files import load

Array = npt.NDArray[np.float32]
CHUNK = 500
CALIBRATION = 500  # training images that int8 is calibrated on


@dataclass(frozen=True)
class Trained:
    """A run's network, plain and in evaluation mode, with inputs (n, ...) as it sees them."""

    network: nn.Module
    name: str
    test: Array
    labels: npt.NDArray[np.int64]
    calibration: Array


def trained(run: Path, results_dir: Path, data_dir: Path) -> Trained:
    """The network of a run, given by its folder or its id in ``results_dir``, and its data.

    Raises:
        UserError: where there is no such run, no weights are kept with it, its data set is not to be had, or it is no
            classifier of numbers.
    """
    require(not run.is_file(), f"{run} is a file; name a run: its folder, or its id")
    network = plain(load(run, results_dir=results_dir)).eval()
    store, identifier = (run.resolve().parent.parent, run.resolve().name) if run.is_dir() else (results_dir, run.name)
    record = Run(store, identifier).result()
    assert record is not None  # or it could not have been loaded
    config = config_of(record)
    assert isinstance(config.dataset, Dataset)
    require(
        config.task.name == "classification",
        f"{identifier} is a run of task={config.task.name}; what is exported is judged by a classifier's test error",
    )
    data = config.dataset.prepare(data_dir, torch.device("cpu"))
    require(
        data.spec.dtype == torch.float32,
        f"the inputs of {identifier} are of type {data.spec.dtype}; networks that take float32 are exported",
    )
    return Trained(network, config.model.name, *examples(data.test), examples(data.train, CALIBRATION)[0])


def examples(split: Split, most: int | None = None) -> tuple[Array, npt.NDArray[np.int64]]:
    """The first inputs of a split, normalised, channels outermost, and their classes."""
    inputs: list[Array] = []
    labels: list[npt.NDArray[np.int64]] = []
    for x, y in split.chunks(CHUNK):
        inputs.append(x.contiguous().numpy())
        labels.append(y.numpy())
        if most is not None and CHUNK * len(inputs) >= most:
            break
    return np.ascontiguousarray(np.concatenate(inputs)[:most], np.float32), np.concatenate(labels)[:most]
