"""The networks of both papers, as ordinary modules: no method appears here.

Each builder is a dataclass whose fields are what ``svdo-run`` can set; ``build`` gives the ``nn.Module``. Weight counts are
those of the papers: matrices and filters, without biases.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from ..config import Choice, check_rates
from ..data.spec import DataSpec
from ..errors import UserError, require
from ..registry import Registry

MODELS: Registry[type[Model]] = Registry("model")


@dataclass
class Model(Choice):
    """A network's settings. ``dropout`` holds its customary rates, pattern -> p, which every dropout method starts from."""

    dropout: dict[str, float] = field(default_factory=dict)

    def build(self, data: DataSpec) -> nn.Module:
        """The network for inputs as ``data`` says, giving (batch, classes) logits; raises ``UserError`` where it cannot."""
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


def sequential(*layers: tuple[str, nn.Module]) -> nn.Module:
    """The named layers one after the other, at the 2017 authors' start."""
    return initialise(nn.Sequential(OrderedDict(layers)))


def normal_start(network: nn.Module, std: float) -> nn.Module:
    """Linear weights from N(0, std^2), in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
    return network


def scaled_start(network: nn.Module) -> nn.Module:
    """Weights scaled to each layer's inputs (He et al. 2015), in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


def image_shape(model: str, data: DataSpec) -> tuple[int, int, int]:
    """Channels, height and width of the images; raises ``UserError`` where ``data`` are none."""
    require(len(data.shape) == 3, f"model={model} takes images, and an input of this data set has the shape {data.shape}")
    channels, height, width = data.shape
    return channels, height, width


M = TypeVar("M", bound=type[Model])


def model(cls: M) -> M:
    """Register a ``Model`` dataclass under its ``name``."""
    MODELS.add(cls.name, cls)
    return cls


def find(name: str) -> type[Model]:
    """The model class called ``name``; raises ``UserError`` listing the choices where there is none."""
    return MODELS.find(name)


def build(model: Model, data: DataSpec, seed: int) -> nn.Module:
    """``model.build`` with its random start a function of ``seed`` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build(data)


def outline(model: Model, data: DataSpec) -> nn.Module:
    """``model.build`` on the meta device, which takes no memory: the layers with their shapes, without values.

    Raises:
        UserError: where the model cannot be built for such inputs, or is larger than torch can count.
    """
    try:
        with torch.device("meta"):
            return model.build(data)
    except (OverflowError, RuntimeError, TypeError) as error:
        if "verflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        raise UserError(f"model={model.name} with these settings has more weights than can be counted; take less") from None
