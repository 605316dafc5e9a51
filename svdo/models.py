"""The networks of both papers, as ordinary modules: no method appears here.

Each builder is a dataclass whose fields are what ``svdo-run`` can set; ``build`` gives the ``nn.Module``. Weight counts are
those of the papers: matrices and filters, without biases.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn

from .config import Choice, UserError, check_rates, require

Shape = tuple[int, int, int]  # channels, height, width


@dataclass
class Model(Choice):
    """A network's settings. ``dropout`` holds its customary rates, pattern -> p, which every dropout method starts from."""

    dropout: dict[str, float] = field(default_factory=dict)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The network for images of ``shape``, giving (batch, classes) logits; raises ``UserError`` where it cannot."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``UserError`` on a rate outside [0, 1)."""
        check_rates("model.dropout", self.dropout)


def initialise(network: nn.Module) -> nn.Module:
    """The 2017 authors' start, in place: Linear N(0, 0.01^2), Conv2d Glorot uniform, biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        elif isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


def _sequential(*layers: tuple[str, nn.Module]) -> nn.Module:
    return initialise(nn.Sequential(OrderedDict(layers)))


def _normal_start(network: nn.Module, std: float) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
    return network


def _scaled_start(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


@dataclass
class MLP(Model):
    """``depth`` hidden ReLU layers of ``width`` units: the fully connected nets of the 2015 paper.

    Weights start from N(0, ``start_std``^2), or, where that is 0, scaled to each layer's inputs (He et al. 2015).
    """

    name: str = "mlp"
    depth: int = 3
    width: int = 500
    start_std: float = 0.0

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """fc1 ... fc(depth + 1), on flattened images."""
        sizes = [shape[0] * shape[1] * shape[2], *[self.width] * self.depth, classes]
        layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        for i, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            layers += [(f"fc{i}", nn.Linear(inputs, outputs)), (f"relu{i}", nn.ReLU())]
        network = _sequential(*layers[:-1])
        return _normal_start(network, self.start_std) if self.start_std else _scaled_start(network)

    def check(self) -> None:
        """Raise ``UserError`` unless depth is at least 0, width at least 1 and the start finite."""
        super().check()
        require(self.depth >= 0, f"model.depth={self.depth} is too small; it must be at least 0")
        require(self.width >= 1, f"model.width={self.width} is too small; it must be at least 1")
        require(0.0 <= self.start_std < math.inf, f"model.start_std={self.start_std} is no standard deviation; take 0 or more")


@dataclass
class LeNet300(Model):
    """LeNet-300-100: 266 200 weights on MNIST."""

    name: str = "lenet300"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """784 - 300 - 100 - classes, ReLU."""
        return _sequential(
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(shape[0] * shape[1] * shape[2], 300)),
            ("relu1", nn.ReLU()),
            ("fc2", nn.Linear(300, 100)),
            ("relu2", nn.ReLU()),
            ("fc3", nn.Linear(100, classes)),
        )


@dataclass
class LeNet5(Model):
    """LeNet-5 as in Caffe, with the ReLUs after the convolutions of the 2017 authors' code: 430 500 weights on MNIST."""

    name: str = "lenet5"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """conv 20@5x5 - pool 2 - conv 50@5x5 - pool 2 - 500 - classes."""
        side = [((size - 4) // 2 - 4) // 2 for size in shape[1:]]
        require(min(side) >= 1, f"model=lenet5 needs images of at least 16 x 16 pixels, not {shape[1]} x {shape[2]}")
        return _sequential(
            ("conv1", nn.Conv2d(shape[0], 20, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(20, 50, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(50 * side[0] * side[1], 500)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(500, classes)),
        )


@dataclass
class ConvNet(Model):
    """The small convolutional net of the 2015 paper with every width scaled by ``k``: a reconstruction.

    As recalled, the paper names strides, widths and softplus; kernels of 5 x 5, padding and start are ours.
    """

    name: str = "convnet"
    k: float = 1.0

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """conv 32k@5x5 stride 2 - conv 64k@5x5 stride 2 - 128k - 128k - classes, softplus; starts as ``MLP``'s."""
        sizes = [int(base * self.k) for base in (32, 64, 128, 128)]
        side = [(size + 3) // 4 for size in shape[1:]]
        layers: list[tuple[str, nn.Module]] = []
        for i, (inputs, outputs) in enumerate(pairwise([shape[0], *sizes[:2]]), 1):
            layers += [(f"conv{i}", nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)), (f"softplus{i}", nn.Softplus())]
        layers.append(("flatten", nn.Flatten()))
        for i, (inputs, outputs) in enumerate(pairwise([sizes[1] * side[0] * side[1], *sizes[2:], classes]), 1):
            layers += [(f"fc{i}", nn.Linear(inputs, outputs)), (f"softplus{i + 2}", nn.Softplus())]
        return _scaled_start(_sequential(*layers[:-1]))

    def check(self) -> None:
        """Raise ``UserError`` unless every layer keeps at least one unit."""
        super().check()
        require(1 / 32 <= self.k < math.inf, f"model.k={self.k} is out of range; at least 1/32 leaves a unit in every layer")


@dataclass
class VGG(Model):
    """The VGG-like network of Zagoruyko (2015) with every width scaled by ``k``: 14 977 728 weights at k = 1, 10 classes."""

    name: str = "vgg"
    k: float = 1.0

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Thirteen 3x3 convolutions in groups of 2, 2, 3, 3, 3, each with batch norm and ReLU, pooled; two dense layers."""
        require(shape[1:] == (32, 32), f"model=vgg needs images of 32 x 32 pixels, not {shape[1]} x {shape[2]}")
        layers: list[tuple[str, nn.Module]] = []
        channels, number = shape[0], 0
        for group, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
            for _ in range(depth):
                number, width_k = number + 1, int(width * self.k)
                layers += [
                    (f"conv{number}", nn.Conv2d(channels, width_k, 3, padding=1)),
                    (f"bn{number}", nn.BatchNorm2d(width_k, eps=1e-3)),
                    (f"relu{number}", nn.ReLU()),
                ]
                channels = width_k
            layers.append((f"pool{group}", nn.MaxPool2d(2)))
        return _sequential(
            *layers,
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(channels, channels)),
            ("bn_fc1", nn.BatchNorm1d(channels, eps=1e-3)),
            ("relu_fc1", nn.ReLU()),
            ("fc2", nn.Linear(channels, classes)),
        )

    def check(self) -> None:
        """Raise ``UserError`` unless every layer keeps at least one unit."""
        super().check()
        require(1 / 64 <= self.k < math.inf, f"model.k={self.k} is out of range; at least 1/64 leaves a unit in every layer")


MODELS: dict[str, type[Model]] = {cls.name: cls for cls in (MLP, LeNet300, LeNet5, ConvNet, VGG)}


def find(name: str) -> type[Model]:
    """The model class called ``name``; raises ``UserError`` listing the choices where there is none."""
    if name not in MODELS:
        raise UserError(f"model={name} is not a choice; take one of: {', '.join(MODELS)}")
    return MODELS[name]


def build(model: Model, shape: Shape, classes: int, seed: int) -> nn.Module:
    """``model.build`` with its random start a function of ``seed`` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build(shape, classes)
