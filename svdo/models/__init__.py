"""The networks of both papers, one family per file, and the registry of their names."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UserError
from .base import Model, Shape, initialise
from .convnet import ConvNet
from .lenet import LeNet5, LeNet300
from .mlp import MLP
from .vgg import VGG

MODELS: dict[str, type[Model]] = {cls.name: cls for cls in (MLP, LeNet300, LeNet5, ConvNet, VGG)}

__all__ = ["MLP", "MODELS", "VGG", "ConvNet", "LeNet5", "LeNet300", "Model", "Shape", "build", "find", "initialise", "outline"]


def find(name: str) -> type[Model]:
    """The model class called ``name``; raises ``UserError`` listing the choices where there is none."""
    if name not in MODELS:
        raise UserError(f"model={name} is not a choice; take one of: {', '.join(MODELS)}")
    return MODELS[name]


def outline(model: Model, shape: Shape, classes: int) -> nn.Module:
    """``model.build`` on the meta device, which takes no memory: the layers with their shapes, without values.

    Raises:
        UserError: where the model cannot be built for such images, or is larger than torch can count.
    """
    try:
        with torch.device("meta"):
            return model.build(shape, classes)
    except (OverflowError, RuntimeError, TypeError) as error:
        if "verflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        raise UserError(f"model={model.name} with these settings has more weights than can be counted; take less") from None


def build(model: Model, shape: Shape, classes: int, seed: int) -> nn.Module:
    """``model.build`` with its random start a function of ``seed`` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build(shape, classes)
