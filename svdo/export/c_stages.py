"""The stages that a network's C source is written from.

A dense layer is a convolution whose kernel covers the whole image, and flattening is nothing at all: so there are two kinds
of stage, ``Product`` and ``Pooling``, and everything between two products is folded into one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Shape = tuple[int, int, int]  # channels, height, width; a vector is (features, 1, 1)
Pair = tuple[int, int]

MOST_FUSED = 16  # pixels of a pooling window that is computed together with the product before it


@dataclass
class Pooling:
    """Max or average pooling of ``source`` into ``shape``, then ReLU where ``relu``; -1 pads on each side, as torch does."""

    name: str
    kind: str  # max or average
    source: Shape
    shape: Shape
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    counts_padding: bool = True
    divisor: int = 0
    relu: bool = False

    @property
    def fits(self) -> bool:
        """Whether windows lie side by side inside the image and are small: then no image is stored in between."""
        simple = self.kernel == self.stride and self.padding == (0, 0) and self.dilation == (1, 1)
        inside = all(n * k <= size for n, k, size in zip(self.shape[1:], self.kernel, self.source[1:], strict=True))
        return simple and inside and math.prod(self.kernel) <= MOST_FUSED


@dataclass
class Product:
    """A convolution of ``source`` into ``made``, then ReLU where ``relu``, then ``pooling`` where there is one."""

    name: str
    weight: Array  # (out, in, height, width), groups written out
    bias: Array
    source: Shape
    made: Shape
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)  # above and to the left
    dilation: Pair = (1, 1)
    relu: bool = False
    pooling: Pooling | None = None

    @property
    def shape(self) -> Shape:
        """What the next stage reads."""
        return self.pooling.shape if self.pooling else self.made


Stage = Product | Pooling


@dataclass
class Chain:
    """The stages so far, and what the network sees of the last one's output: which elements, in which shape."""

    stages: list[Stage]
    source: Shape
    seen: npt.NDArray[np.int64]  # of the network's own shape: indices into the last stage's output, or the input

    @property
    def whole(self) -> bool:
        """Whether every element is seen, in order."""
        return bool(np.array_equal(self.seen.ravel(), np.arange(math.prod(self.source))))

    def add(self, stage: Stage, shape: tuple[int, ...]) -> None:
        """Append a stage whose output the network sees in ``shape``."""
        self.stages.append(stage)
        self.source = stage.shape
        self.seen = np.arange(math.prod(shape)).reshape(shape)


def fused(chain: list[Stage]) -> list[Stage]:
    """Pooling joins the product before it where its windows allow that."""
    result: list[Stage] = []
    for stage in chain:
        last = result[-1] if result else None
        if isinstance(stage, Pooling) and stage.fits and isinstance(last, Product) and last.pooling is None:
            last.pooling = stage
        else:
            result.append(stage)
    return result


def drop_unread(chain: list[Stage]) -> None:
    """Leave out channels that the next product never reads; their weights go with them."""
    read: npt.NDArray[np.bool_] | None = None  # channels of the stage's output that a later one reads; None: all
    for stage in reversed(chain):
        if isinstance(stage, Pooling):
            if read is not None:
                stage.source, stage.shape = _narrowed(stage.source, read), _narrowed(stage.shape, read)
            continue
        if read is not None:
            stage.weight, stage.bias = stage.weight[read], stage.bias[read]
            stage.made = _narrowed(stage.made, read)
            if stage.pooling is not None:
                stage.pooling.source = _narrowed(stage.pooling.source, read)
                stage.pooling.shape = _narrowed(stage.pooling.shape, read)
        used = np.asarray(stage.weight.any(axis=(0, 2, 3)), np.bool_)
        if not used.any():
            used[0] = True  # no array in C may be empty
        if stage is not chain[0]:
            stage.weight = np.ascontiguousarray(stage.weight[:, used])
            stage.source = _narrowed(stage.source, used)
        read = used


def _narrowed(shape: Shape, read: npt.NDArray[np.bool_]) -> Shape:
    return (int(read.sum()), *shape[1:])
