"""Images as device-resident uint8 tensors; normalisation and augmentation are batched there.

The order of an epoch and its augmentation are a function of (seed, epoch) alone, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import MAX_SEED, at_least, between, one_of
from ..errors import require
from .base import DATASETS, Dataset
from .known import KNOWN, Images
from .sources import load
from .spec import Data, DataSpec
from .tensors import epoch_generator

NORMALIZATIONS = ("pixel_mean", "standard", "zca", "none")
MAX_CROP = 28  # the smallest images' side
ZCA_EPSILON = 1e-5  # of the 2017 authors, for pixels in 0 ... 255


@dataclass
class ImageDataset(Dataset):
    """Which images, how they are normalised, augmented, split and (mis)labelled."""

    name: str = "mnist"
    normalization: str = "pixel_mean"  # pixel_mean: x/256 - per-pixel training mean; standard: per-channel mean and std
    crop: int = 0  # zero-pad by this many pixels and crop back at a random offset, per image
    flip: bool = False  # mirror each image left to right with probability 1/2
    validation: int = 0  # the last so many training images are held out and used for selection
    subset: int = 0  # use only the first so many training images (0: all)
    test_subset: int = 0  # and so many test images
    random_labels: float = 0.0  # share of training labels replaced, once, by uniform random classes
    label_seed: int = 74632  # the 2017 authors' seed for random labels

    def check(self) -> None:
        """Raise ``UserError`` on an unknown choice or an impossible number."""
        one_of("dataset.normalization", self.normalization, NORMALIZATIONS)
        for key in ("validation", "subset", "test_subset"):
            at_least(f"dataset.{key}", getattr(self, key), 0)
        between("dataset.crop", self.crop, 0, MAX_CROP)
        between("dataset.label_seed", self.label_seed, 0, MAX_SEED)
        between("dataset.random_labels", self.random_labels, 0.0, 1.0)
        check_counts(self)

    def outline(self) -> tuple[DataSpec, int]:
        """Channels, height and width of an image and the number of classes; and how many images are left to train on."""
        known = KNOWN[self.name]
        return DataSpec((known.shape[2], *known.shape[:2]), known.classes), check_counts(self)

    def prepare(self, data_dir: Path, device: torch.device, progress: bool = True) -> Data:
        """The images that ``sources.load`` finds, as ``prepare`` makes them ready."""
        return prepare(self, load(self.name, data_dir, progress), device)

    def notes(self) -> list[str]:
        """Normalisation, augmentation and random labels, in one line."""
        notes = [f"normalised by {self.normalization}"]
        notes += [f"crop {self.crop}"] if self.crop else []
        notes += ["flip"] if self.flip else []
        notes += [f"{100 * self.random_labels:g} % random labels"] if self.random_labels else []
        return [", ".join(notes)]


@dataclass(frozen=True)
class Normalizer:
    """(x * scale - shift), then, for ZCA, times a matrix over all pixels of an image."""

    scale: Tensor
    shift: Tensor
    whiten: Tensor | None = None

    @classmethod
    def fit(cls, kind: str, images: Tensor) -> Normalizer:
        """Statistics of the training ``images``, uint8 (N, H, W, C), for one of ``NORMALIZATIONS``."""
        zero, one = torch.zeros((), device=images.device), torch.ones((), device=images.device)
        if kind == "none":
            return cls(one / 255.0, zero)
        if kind == "pixel_mean":
            return cls(one / 256.0, _mean(images) / 256.0)
        if kind == "standard":
            mean, square = _mean(images).mean((0, 1)), _mean(images, squared=True).mean((0, 1))
            deviation = (square - mean.square()).sqrt()
            return cls(1.0 / deviation, mean / deviation)
        mean = _mean(images)
        pixels = (images.float() - mean).flatten(1)
        covariance = (pixels.T @ pixels / len(pixels)).double()
        values, vectors = torch.linalg.eigh(covariance)
        inverse_root = (vectors * (values.clamp_min(0.0) + ZCA_EPSILON).rsqrt()) @ vectors.T
        return cls(one, mean, inverse_root.float())

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, C) -> float32 of the same shape."""
        x = images.float().mul_(self.scale).sub_(self.shift)
        return x if self.whiten is None else (x.flatten(1) @ self.whiten).view_as(x)


def _mean(images: Tensor, squared: bool = False) -> Tensor:
    """Mean over images, (H, W, C) float32, summed in float64 by chunks so that no float copy of the set is made."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64, device=images.device)
    for chunk in images.split(5000):
        pixels = chunk.double()
        total += (pixels.square() if squared else pixels).sum(0)
    return (total / len(images)).float()


@dataclass(frozen=True)
class ImageSplit:
    """One part of a data set: ``images`` (N, H, W, C), uint8 or already normalised float32; ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor
    normalizer: Normalizer
    crop: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def _normalised(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 in channels_last memory order."""
        x = self.normalizer(images) if images.dtype == torch.uint8 else images
        return x.permute(0, 3, 1, 2)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order, never augmented: x (size, C, H, W) float32 and y (size,); the last may be smaller."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield self._normalised(images), labels

    def batches(self, size: int, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled, augmented epoch from batch ``start`` on: x (size, C, H, W) float32 and y (size,).

        A last partial batch is dropped, as in the papers' code; shuffling gives every image its turn.
        """
        generator = epoch_generator(seed, epoch)
        device, n = self.images.device, len(self)
        order = torch.randperm(n, generator=generator).to(device)
        shifts = torch.randint(0, 2 * self.crop + 1, (2, n), generator=generator).to(device) if self.crop else None
        flips = torch.rand(n, generator=generator).to(device) < 0.5 if self.flip else None
        for first in range(start * size, n - size + 1, size):
            batch = slice(first, first + size)
            images = self.images[order[batch]]
            if shifts is not None or flips is not None:
                images = _crop_and_flip(
                    images,
                    self.crop,
                    None if shifts is None else shifts[:, batch],
                    None if flips is None else flips[batch],
                )
            yield self._normalised(images), self.labels[order[batch]]


def _crop_and_flip(images: Tensor, pad: int, shifts: Tensor | None, flips: Tensor | None) -> Tensor:
    n, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device).expand(n, -1)
    columns = torch.arange(width, device=images.device).expand(n, -1)
    if flips is not None:
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
    if shifts is not None:
        rows, columns = rows + shifts[0, :, None], columns + shifts[1, :, None]
        images = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    picture = torch.arange(n, device=images.device)[:, None, None]
    return images[picture, rows[:, :, None], columns[:, None, :]]


def check_counts(config: ImageDataset, train: int | None = None, test: int | None = None) -> int:
    """Hold what ``config`` asks for against the numbers of images, left out those of the data set it names.

    Returns:
        How many images are left to train on.

    Raises:
        UserError: where it asks for more than there are, or leaves none.
    """
    train, test = train or KNOWN[config.name].train, test or KNOWN[config.name].test
    left = train - config.validation
    require(left >= 1, f"dataset.validation={config.validation} leaves no training image of {train}")
    held_out = f" beside dataset.validation={config.validation}" if config.validation else ""
    require(config.subset <= left, f"dataset.subset={config.subset} exceeds the {left} training images{held_out}; 0 takes all")
    require(config.test_subset <= test, f"dataset.test_subset={config.test_subset} exceeds the {test} test images; 0 takes all")
    return config.subset or left


def prepare(config: ImageDataset, images: Images, device: torch.device) -> Data:
    """Put ``images`` on ``device``, split, mislabel and normalise them as ``config`` says.

    Raises:
        UserError: where too few training images are left, or more are asked for than there are.
    """
    pixels, labels = torch.from_numpy(images.train_images).to(device), torch.from_numpy(images.train_labels).to(device)
    left, used = len(pixels) - config.validation, check_counts(config, len(pixels), len(images.test_labels))
    train_labels = _mislabel(labels[:used].long(), config, images.classes)
    normalizer = Normalizer.fit(config.normalization, pixels[:used])

    def split(part: Tensor, part_labels: Tensor, crop: int = 0, flip: bool = False) -> ImageSplit:
        # Whitening is a large product: done once for all epochs, while other normalisations are cheaper than float storage.
        ready = part if normalizer.whiten is None else torch.cat([normalizer(chunk) for chunk in part.split(1000)])
        return ImageSplit(ready, part_labels.long(), normalizer, crop, flip)

    tested = config.test_subset or None
    test = torch.from_numpy(images.test_images[:tested]).to(device), torch.from_numpy(images.test_labels[:tested]).to(device)
    height, width, channels = pixels.shape[1:]
    return Data(
        train=split(pixels[:used], train_labels, config.crop, config.flip),
        validation=split(pixels[left:], labels[left:]) if config.validation else None,
        test=split(*test),
        spec=DataSpec((channels, height, width), images.classes),
    )


def _mislabel(labels: Tensor, config: ImageDataset, classes: int) -> Tensor:
    """Replace a random share of the labels, once, by uniform random classes (which may hit the true one)."""
    if not config.random_labels:
        return labels
    generator = torch.Generator().manual_seed(config.label_seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(config.random_labels * len(labels))]
    noise = torch.randint(0, classes, (len(chosen),), generator=generator)
    labels = labels.clone()
    labels[chosen.to(labels.device)] = noise.to(labels.device)
    return labels


DATASETS.update(dict.fromkeys(KNOWN, ImageDataset))
