"""The small convolutional network of the 2015 paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ..data.spec import DataSpec
from ..errors import require
from .base import Model, image_shape, model, scaled_start, sequential


@model
@dataclass
class ConvNet(Model):
    """The small convolutional net of the 2015 paper with every width scaled by ``k``: a reconstruction.

    As recalled, the paper names strides, widths and softplus; kernels of 5 x 5, padding and start are ours.
    """

    name: str = "convnet"
    k: float = 1.0

    def build(self, data: DataSpec) -> nn.Module:
        """conv 32k@5x5 stride 2 - conv 64k@5x5 stride 2 - 128k - 128k - classes, softplus; starts as ``MLP``'s."""
        sizes = [int(base * self.k) for base in (32, 64, 128, 128)]
        channels, *sides = image_shape(self.name, data)
        side = [(size + 3) // 4 for size in sides]
        layers: list[tuple[str, nn.Module]] = []
        for i, (inputs, outputs) in enumerate(pairwise([channels, *sizes[:2]]), 1):
            layers += [(f"conv{i}", nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)), (f"softplus{i}", nn.Softplus())]
        layers.append(("flatten", nn.Flatten()))
        for i, (inputs, outputs) in enumerate(pairwise([sizes[1] * side[0] * side[1], *sizes[2:], data.classes]), 1):
            layers += [(f"fc{i}", nn.Linear(inputs, outputs)), (f"softplus{i + 2}", nn.Softplus())]
        return scaled_start(sequential(*layers[:-1]))

    def check(self) -> None:
        """Raise ``UserError`` unless every layer keeps at least one unit."""
        super().check()
        require(1 / 32 <= self.k < math.inf, f"model.k={self.k} is out of range; at least 1/32 leaves a unit in every layer")
