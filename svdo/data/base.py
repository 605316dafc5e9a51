"""What a data set is, and the registry that each ``@dataset`` line fills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from ..config import Choice
from ..registry import Registry
from .spec import Data, DataSpec

DATASETS: Registry[type[Dataset]] = Registry("dataset")


@dataclass
class Dataset(Choice):
    """A data set's settings; ``prepare`` gives its splits.

    ``task`` names what is learned from it unless ``task=...`` says otherwise.
    """

    task: ClassVar[str] = "classification"

    def prepare(self, data_dir: Path, device: torch.device, progress: bool = True) -> Data:
        """The data on ``device``; fetched ones are kept in ``data_dir``, with a progress bar where ``progress`` is true.

        Raises:
            UserError: where the data cannot be had, or are too few for the settings.
        """
        raise NotImplementedError

    def outline(self) -> tuple[DataSpec, int] | None:
        """What is known before the data are there: what a batch is, and how many examples to train on; None: nothing is."""
        return None

    def notes(self) -> list[str]:
        """What a person should know of how the data are prepared, in a few words each."""
        return []


D = TypeVar("D", bound=type[Dataset])


def dataset(cls: D) -> D:
    """Register a ``Dataset`` dataclass under its ``name``."""
    DATASETS.add(cls.name, cls)
    return cls


def find(name: str) -> type[Dataset]:
    """The data set's class; raises ``UserError`` listing the choices where there is none."""
    return DATASETS.find(name)
