"""What is found wrong with a run before anything of it is written: its network is outlined without taking memory."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import machine
from ..config import Config
from ..conversion import convert
from ..data import Dataset, DataSpec
from ..errors import UserError, require
from ..methods import Method
from ..models import Model, outline
from .start import parent_of

BYTES = 4  # of a float32
COPIES = 4  # of each parameter while it is trained: itself, its gradient, Adam's two moments


def preflight(config: Config, started: bool) -> None:
    """Refuse what cannot be trained here; a run that has ``started`` needs its parent's weights no more.

    Raises:
        UserError: on a device that is not there, and a parent without weights; and, where the data set says beforehand what it
            is, as ``check_fit``.
    """
    assert isinstance(config.dataset, Dataset)
    device = machine.device(config.runtime)
    if config.pretrained and not started:
        parent_of(config)
    known = config.dataset.outline()
    if known is not None:
        check_fit(config, *known, device)


def check_fit(config: Config, data: DataSpec, examples: int, device: torch.device) -> None:
    """Hold network and batch against the data and the memory of ``device``.

    Raises:
        UserError: on a network that cannot be built or does not fit, patterns without a layer, a batch larger than the data.
    """
    assert isinstance(config.model, Model)
    assert isinstance(config.method, Method)
    batch = config.train.batch_size
    require(
        batch <= examples or not config.train.epochs,
        f"train.batch_size={batch} exceeds the {examples} training examples; take a smaller batch",
    )
    machine.import_compiler()
    network = outline(config.model, data)
    require(
        batch > 1 or not any(isinstance(module, _BatchNorm) for module in network.modules()),
        f"train.batch_size=1 is too small for model={config.model.name}: batch norm needs two examples to compare",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the network itself is converted
        parameters = sum(parameter.numel() for parameter in convert(network, config.method).parameters())
    needed = BYTES * parameters
    if config.train.epochs:
        inputs = torch.empty(batch, *data.shape, dtype=data.dtype, device="meta")
        needed = COPIES * needed + BYTES * _kept_for_backward(network, inputs)
    there = machine.memory(device)
    if there is not None and needed > there:
        raise UserError(
            f"model={config.model.name} with {_short(parameters)} parameters, its noise's too, and train.batch_size={batch}"
            f" takes at least {_short(needed)}B of memory, and {_short(there)}B are there; take a smaller network or batch"
        )


def _kept_for_backward(network: nn.Module, x: Tensor) -> int:
    """Numbers that a training pass over ``x`` keeps at the least: the inputs of layers with parameters."""
    found: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].numel()))
        for module in network.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


def _short(number: float) -> str:
    """1 234 567 as "1.23 M"."""
    units = ["", "k", "M", "G", "T", "P", "E"]
    power = min(len(str(int(number))) - 1, 3 * (len(units) - 1)) // 3
    return f"{number / 1000**power:.3g} {units[power]}"
