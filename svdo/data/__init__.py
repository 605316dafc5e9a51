"""Data sets: where they come from, and how a run sees them."""

from .base import DATASETS, Dataset, dataset, find
from .images import ImageDataset, ImageSplit, Normalizer, prepare
from .known import Images
from .sources import UnavailableError, fetch, load
from .spec import Data, DataSpec, Split
from .tensors import TensorSplit

__all__ = [
    "DATASETS",
    "Data",
    "DataSpec",
    "Dataset",
    "ImageDataset",
    "ImageSplit",
    "Images",
    "Normalizer",
    "Split",
    "TensorSplit",
    "UnavailableError",
    "dataset",
    "fetch",
    "find",
    "load",
    "prepare",
]
