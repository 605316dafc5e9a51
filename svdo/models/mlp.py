"""Fully connected networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ..data.spec import DataSpec
from ..errors import require
from .base import Model, model, normal_start, scaled_start, sequential

MAX_DEPTH = 1000  # a network this deep, without shortcuts, learns nothing any more


@model
@dataclass
class MLP(Model):
    """``depth`` hidden ReLU layers of ``width`` units: the fully connected nets of the 2015 paper.

    Weights start from N(0, ``start_std``^2), or, where that is 0, scaled to each layer's inputs (He et al. 2015).
    """

    name: str = "mlp"
    depth: int = 3
    width: int = 500
    start_std: float = 0.0

    def build(self, data: DataSpec) -> nn.Module:
        """fc1 ... fc(depth + 1), on flattened images."""
        sizes = [math.prod(data.shape), *[self.width] * self.depth, data.classes]
        layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        for i, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            layers += [(f"fc{i}", nn.Linear(inputs, outputs)), (f"relu{i}", nn.ReLU())]
        network = sequential(*layers[:-1])
        return normal_start(network, self.start_std) if self.start_std else scaled_start(network)

    def check(self) -> None:
        """Raise ``UserError`` unless depth lies in [0, 1000], width is at least 1 and the start finite."""
        super().check()
        require(
            0 <= self.depth <= MAX_DEPTH, f"model.depth={self.depth} is out of range; it must lie between 0 and {MAX_DEPTH}"
        )
        require(self.width >= 1, f"model.width={self.width} is too small; it must be at least 1")
        require(0.0 <= self.start_std < math.inf, f"model.start_std={self.start_std} is no standard deviation; take 0 or more")
