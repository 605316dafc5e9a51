"""The LeNets of the 2017 paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ..data.spec import DataSpec
from ..errors import require
from .base import Model, image_shape, model, sequential


@model
@dataclass
class LeNet300(Model):
    """LeNet-300-100: 266 200 weights on MNIST."""

    name: str = "lenet300"

    def build(self, data: DataSpec) -> nn.Module:
        """784 - 300 - 100 - classes, ReLU."""
        return sequential(
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(math.prod(data.shape), 300)),
            ("relu1", nn.ReLU()),
            ("fc2", nn.Linear(300, 100)),
            ("relu2", nn.ReLU()),
            ("fc3", nn.Linear(100, data.classes)),
        )


@model
@dataclass
class LeNet5(Model):
    """LeNet-5 as in Caffe, with the ReLUs after the convolutions of the 2017 authors' code: 430 500 weights on MNIST."""

    name: str = "lenet5"

    def build(self, data: DataSpec) -> nn.Module:
        """conv 20@5x5 - pool 2 - conv 50@5x5 - pool 2 - 500 - classes."""
        channels, *sides = image_shape(self.name, data)
        side = [((size - 4) // 2 - 4) // 2 for size in sides]
        require(min(side) >= 1, f"model=lenet5 needs images of at least 16 x 16 pixels, not {sides[0]} x {sides[1]}")
        return sequential(
            ("conv1", nn.Conv2d(channels, 20, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(20, 50, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(50 * side[0] * side[1], 500)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(500, data.classes)),
        )
