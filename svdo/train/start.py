"""The network that a run starts from, and that of a finished run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..config import Config
from ..conversion import convert
from ..counts import evaluation_weights
from ..data import Data, Dataset, DataSpec
from ..errors import UserError, require
from ..layers import settings
from ..methods import Method
from ..methods import find as find_method
from ..models import Model, build
from ..runs import REBUILT, Run, with_weights


def trained(config: Config, run: Run) -> tuple[nn.Module, Data]:
    """The network of a finished run whose weights are at hand, and its data, on the CPU."""
    assert isinstance(config.dataset, Dataset)
    data = config.dataset.prepare(Path(config.data_dir), torch.device("cpu"))
    model = network_of(config, data.spec, started=True)
    with settings.known_otherwise():
        model.load_state_dict(run.tensors(run.weights))
    return model.to(memory_format=torch.channels_last), data


def network_of(config: Config, data: DataSpec, started: bool = False) -> nn.Module:
    """The network at the run's start; where it has ``started``, its weights are still to be loaded."""
    assert isinstance(config.model, Model)
    assert isinstance(config.method, Method)
    network = build(config.model, data, config.seed)
    if config.pretrained and not started:
        _start_from(network, config)
    return convert(network, config.method)


def parent_of(config: Config) -> Run:
    """The finished run whose weights this one starts from; raises ``UserError`` where it is not there, or without weights."""
    given = Path(config.results_dir)
    store = given.parent if given.name == REBUILT else given  # what is trained again there starts from what was trained here
    parent = Run(store, config.pretrained)
    require(parent.result() is not None, f"pretrained={config.pretrained}: no finished run in {parent.folder}")
    found = with_weights(store, config.pretrained)
    if found is None:
        again = store / REBUILT
        raise UserError(
            f"pretrained={config.pretrained}: {parent.weights} is missing; train that run again with results_dir={again}"
        )
    return found


def _start_from(network: nn.Module, config: Config) -> None:
    found = parent_of(config)
    record, weights = found.result(), found.tensors(found.weights)
    assert record is not None
    try:
        parent_method = find_method(record["method"])(**record["config"]["method"])
    except (KeyError, TypeError):
        raise UserError(f"pretrained={config.pretrained}: its record is of another version of svdo; train it anew") from None
    try:
        twin = convert(network, parent_method)
        with settings.known_otherwise():
            twin.load_state_dict(weights)
        network.load_state_dict({key: value for key, value in weights.items() if "noise." not in key})
        with torch.no_grad():  # what the parent's record evaluates: its removed weights start at 0
            for name, weight in evaluation_weights(twin).items():
                network.get_submodule(name).weight.copy_(weight)  # type: ignore[operator]
    except RuntimeError:
        raise UserError(f"pretrained={config.pretrained}: its network is not a {config.model.name} of this shape") from None
