"""Where each number lies in the buffers of a network's C source, and which weights meet it there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .c_stages import Pooling, Product, Shape, Stage

EIGHT = 8  # numbers of the input that are copied, and laid abreast, together

Offsets = npt.NDArray[np.int64]


@dataclass
class Layout:
    """Where the pixel (c, y, x) of a stage's input lies: at ``c * channel + row(y) + column(x)``.

    A convolution's input has its padding around it, zeros that nobody writes; under a stride of s every s-th column and row
    lies together, so that the outputs' inputs are neighbours whatever the stride.
    """

    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padded: tuple[int, int] = (0, 0)  # height and width with padding on all sides
    packed: Offsets | None = None  # of the network's input, where only the eights that start here are read

    @classmethod
    def of(cls, stage: Stage) -> Layout:
        """The layout that ``stage`` reads."""
        if isinstance(stage, Pooling):
            return cls(stage.source, padded=stage.source[1:])
        needed = [
            max(size + before, (outputs - 1) * stride + dilation * (kernel - 1) + 1)
            for size, before, outputs, stride, dilation, kernel in zip(
                stage.source[1:],
                stage.padding,
                stage.made[1:],
                stage.stride,
                stage.dilation,
                stage.weight.shape[2:],
                strict=True,
            )
        ]
        return cls(stage.source, stage.stride, stage.padding, (needed[0], needed[1]))

    @property
    def phase(self) -> tuple[int, int]:
        """Height and width of the part of a channel that lies together."""
        height, width = (math.ceil(size / stride) for size, stride in zip(self.padded, self.stride, strict=True))
        return height, width

    @property
    def channel(self) -> int:
        """Floats from one channel to the next."""
        return math.prod(self.phase) * math.prod(self.stride)

    @property
    def size(self) -> int:
        """Floats of an image."""
        return self.shape[0] * self.channel if self.packed is None else EIGHT * len(self.packed)

    def place(self, c: Offsets, y: Offsets, x: Offsets) -> Offsets:
        """The offset of a pixel, counted from the padding's corner."""
        height, width = self.phase
        phase = (y % self.stride[0]) * self.stride[1] + x % self.stride[1]
        return c * self.channel + phase * height * width + y // self.stride[0] * width + x // self.stride[1]

    def row(self, y: str) -> str:
        """``place`` in C, its part that depends on y."""
        y, (height, width) = plus(y, self.padding[0]), self.phase
        if self.stride[0] == 1:
            return f"{y} * {width}"
        return f"({y} % {self.stride[0]} * {self.stride[1] * height * width} + {y} / {self.stride[0]} * {width})"

    def column(self, x: str) -> str:
        """And that which depends on x."""
        x, (height, width) = plus(x, self.padding[1]), self.phase
        if self.stride[1] == 1:
            return x
        return f"({x} % {self.stride[1]} * {height * width} + {x} / {self.stride[1]})"


def plus(name: str, number: int) -> str:
    """A sum as C says it."""
    return f"({name} + {number})" if number else name


@dataclass
class Taps:
    """The nonzero weights of a product: those of output o are ``start[o] ... start[o + 1]`` of ``at`` and ``value``."""

    start: Offsets
    at: Offsets
    value: npt.NDArray[np.float32]

    @classmethod
    def of(cls, product: Product, layout: Layout) -> Taps:
        """In order of their place in the input."""
        o, c, y, x = (index.astype(np.int64) for index in product.weight.nonzero())
        at = layout.place(c, y * product.dilation[0], x * product.dilation[1])
        order = np.lexsort((at, o))
        start = np.concatenate([[0], np.cumsum(np.bincount(o, minlength=len(product.weight)))])
        return cls(start, at[order], product.weight[o, c, y, x][order])


def eights(count: int) -> Offsets:
    """Where each eight of so many numbers starts; the last overlaps the one before it where that is needed."""
    return np.minimum(np.arange(0, count, EIGHT), count - EIGHT)
