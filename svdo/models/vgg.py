"""The VGG-like network of the 2017 paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ..data.spec import DataSpec
from ..errors import require
from .base import Model, image_shape, model, sequential


@model
@dataclass
class VGG(Model):
    """The VGG-like network of Zagoruyko (2015) with every width scaled by ``k``: 14 977 728 weights at k = 1, 10 classes."""

    name: str = "vgg"
    k: float = 1.0

    def build(self, data: DataSpec) -> nn.Module:
        """Thirteen 3x3 convolutions in groups of 2, 2, 3, 3, 3, each with batch norm and ReLU, pooled; two dense layers."""
        channels, height, width = image_shape(self.name, data)
        require((height, width) == (32, 32), f"model=vgg needs images of 32 x 32 pixels, not {height} x {width}")
        layers: list[tuple[str, nn.Module]] = []
        number = 0
        for group, (base, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
            for _ in range(depth):
                number, width_k = number + 1, int(base * self.k)
                layers += [
                    (f"conv{number}", nn.Conv2d(channels, width_k, 3, padding=1)),
                    (f"bn{number}", nn.BatchNorm2d(width_k, eps=1e-3)),
                    (f"relu{number}", nn.ReLU()),
                ]
                channels = width_k
            layers.append((f"pool{group}", nn.MaxPool2d(2)))
        return sequential(
            *layers,
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(channels, channels)),
            ("bn_fc1", nn.BatchNorm1d(channels, eps=1e-3)),
            ("relu_fc1", nn.ReLU()),
            ("fc2", nn.Linear(channels, data.classes)),
        )

    def check(self) -> None:
        """Raise ``UserError`` unless every layer keeps at least one unit."""
        super().check()
        require(1 / 64 <= self.k < math.inf, f"model.k={self.k} is out of range; at least 1/64 leaves a unit in every layer")
