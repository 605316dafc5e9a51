"""Networks to files and back: ``save`` and ``load``. Nothing in a file is executed."""

from __future__ import annotations

import copy
import dataclasses
import glob
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models, runs
from ..conversion import convert, method_of, plain
from ..counts import evaluation_weights, masks
from ..errors import UserError, require
from ..methods import Method
from ..methods import find as find_method
from . import architecture, container, graph, sparse

KIND = "network"


def save(
    module: nn.Module,
    path: str | Path,
    *,
    method: str | Method | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> int:
    """Write a network's parameters and buffers, and what it takes to load them again, to a safetensors file.

    Args:
        module: a converted network, in training or done, or a plain one; it is not changed.
        path: the file; nothing is left of it where writing fails.
        method: what the network was converted with, and its ``settings``, as ``convert`` takes them, where the network does not
            tell.
        overwrite: replace an existing file.
        **settings: the method's fields, where ``method`` is a name.

    Returns:
        The file's size in bytes.

    Raises:
        UserError: on an existing file, or where ``method`` is not what the network was converted with.
    """
    names = list(masks(module))
    description: container.Description = {"kind": KIND, "layers": names, "method": None}
    if names or method is not None:
        found = _method(module, method, settings)
        _check_method(module, found, names)
        description["method"] = dataclasses.asdict(found) if names else None  # a method can leave all layers plain
    description["network"] = architecture.describe(plain(module))
    tensors = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return container.write(Path(path), tensors, description, overwrite)


def _method(module: nn.Module, method: str | Method | None, settings: dict[str, Any]) -> Method:
    if isinstance(method, str):
        try:
            return find_method(method)(**settings)
        except TypeError:
            raise UserError(f"method {method} has no such settings: {', '.join(settings)}") from None
    require(not settings, "settings go into the Method itself, or beside a method's name, not both")
    require(
        method is None or isinstance(method, Method),
        f"{method!r} is no method; give a name, such as sparsevd, or a Method with its settings",
    )
    found = method or method_of(module)
    if found is None:
        raise UserError('the network does not tell how it was converted; say it: save(model, path, method="sparsevd")')
    return found


def _check_method(module: nn.Module, method: Method, names: list[str]) -> None:
    """A file must not say another threshold, or another method, than the network's."""
    try:
        twin = _converted(plain(module), method, names)
        _load_state(twin, module.state_dict())
        expected, found = evaluation_weights(module), evaluation_weights(twin)
        fits = all(torch.equal(weight, found[name].to(weight.device)) for name, weight in expected.items())
    except UserError:
        fits = False
    require(fits, f"the network was not converted with method={method.name} and these settings; say those that convert took")


def load(source: str | Path, into: nn.Module | None = None, results_dir: str | Path = "results") -> nn.Module:
    """The network of a run or of a file, in evaluation mode, on the CPU.

    Args:
        source: a run's folder or its id, or a file that ``save`` or ``svdo.export.sparse.save`` wrote.
        into: for a file whose network is no ``Sequential`` of known layers: a plain network of the same class and sizes. It is
            not changed.
        results_dir: where a run given by its id lies.

    Returns:
        What was saved: a converted network from a run or a converted network's file, else a plain one.

    Raises:
        UserError: where there is no such run or file, it has no weights, is damaged or of a newer version, or does not fit
            ``into``.
    """
    for key, value in (("source", source), ("results_dir", results_dir)):
        require(isinstance(value, str | os.PathLike), f"load: {key}={value!r} is no path")
    require(into is None or isinstance(into, nn.Module), f"load: into={into!r} is no torch.nn.Module")
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path, into)
    require(into is None, f"{path} is no file; into= is for the networks of files")
    if path.is_dir():
        require(path.resolve().parent.name == "runs", f"{path} is no run's folder; those lie in <results_dir>/runs")
        return _from_run(path.resolve().parent.parent, path.resolve().name)
    require(path.name == str(source), f"{path} does not exist")
    return _from_run(Path(results_dir).expanduser(), path.name)


def _from_file(path: Path, into: nn.Module | None) -> nn.Module:
    stored, description = container.read(path)
    try:
        if description.get("kind") == sparse.KIND:
            network, shapes, decoder = sparse.read(stored, description)
            target = _target(network, into)
            _check_shapes(target, shapes)
            _load_state(target, decoder.state(), assign=into is None)
            return target.eval()
        require(description.get("kind") == KIND, "it is of a kind that this version of svdo does not know")
        target = _target(description.get("network"), into)
        if into is None:
            plain_state = {key: value for key, value in stored.items() if key in target.state_dict()}
            _check_shapes(target, _shapes(plain_state))
            _load_state(target, plain_state, assign=True)
        if (recorded := description.get("method")) is not None:
            target = _converted(target, _recorded_method(recorded), description["layers"])
        _check_shapes(target, _shapes(stored))
        _load_state(target, stored)
        return target.eval()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its description is not one of svdo's") from None


def _target(network: Any, into: nn.Module | None) -> nn.Module:
    if into is not None:
        return copy.deepcopy(into)
    require(network is not None, "its network is no Sequential of known layers; build one of its class and pass it as into=")
    return architecture.build(network)


def _recorded_method(recorded: dict[str, Any]) -> Method:
    cls = find_method(str(recorded["name"]))
    try:
        return cls(**recorded)
    except TypeError:
        raise UserError(f"its settings of {cls.name} are those of another version of svdo") from None


def _converted(network: nn.Module, method: Method, names: list[str]) -> nn.Module:
    """``network`` converted as it was when ``names`` became its noisy layers."""
    layers = {name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    missing = [name for name in names if name not in layers]
    require(not missing, f"the network has no Linear or Conv2d called {missing[:1]}, which was converted")
    with warnings.catch_warnings():  # of weights removed from the start, which are about to be replaced
        warnings.simplefilter("ignore")
        converted = convert(network, method)
        if list(masks(converted)) != names and names != [""]:
            converted = convert(network, method, include=[glob.escape(name) for name in names])
    require(
        list(masks(converted)) == names,
        "its method converts other layers of the network than it did when it was saved",
    )
    return converted


def _shapes(state: dict[str, Any]) -> sparse.Shapes:
    return {key: (tuple(value.shape), value.dtype) for key, value in state.items() if isinstance(value, Tensor)}


def _check_shapes(network: nn.Module, shapes: sparse.Shapes) -> None:
    """What is on the meta device has no type of its own yet."""
    expected = _shapes(network.state_dict())
    on_meta = {key for key, value in network.state_dict().items() if isinstance(value, Tensor) and value.is_meta}
    for key in [*expected, *shapes]:
        require(key in shapes, f"it has no {key}, which the network has")
        require(key in expected, f"it has {key}, which the network has not")
        (shape, dtype), (own_shape, own_dtype) = shapes[key], expected[key]
        require(shape == own_shape, f"its {key} is of shape {shape}, the network's {own_shape}")
        require(
            dtype == own_dtype or key in on_meta, f"its {key} is {dtype}, the network's {own_dtype}; bring that to the type"
        )


def _load_state(network: nn.Module, state: dict[str, Any], assign: bool = False) -> None:
    """Strictly, but for what is no tensor, in which the network's own stays."""
    own = {key: value for key, value in network.state_dict().items() if not isinstance(value, Tensor)}
    try:
        network.load_state_dict({**own, **state}, assign=assign)
    except RuntimeError as error:
        raise UserError(f"it does not fit the network: {graph.first_line(error)}") from None


def _from_run(results_dir: Path, id: str) -> nn.Module:
    """The trained network of a record: the model and method of its configuration, and its weights; no Hydra, no data set."""
    run = runs.Run(results_dir, id)
    record = run.result()
    if record is None:
        raise UserError(f"there is no finished run in {run.folder}")
    found = runs.with_weights(results_dir, id)
    if found is None:
        raise UserError(f"the record of {id} is kept without its weights; train the run again with results_dir=elsewhere")
    try:
        config = runs.config_of(record)
    except ValueError as error:
        raise UserError(f"the record of {id} is of another version of svdo ({error}); train the run anew") from None
    assert isinstance(config.model, models.Model)
    assert isinstance(config.method, Method)
    network = models.build(config.model, runs.data_of(record, config), config.seed)
    with warnings.catch_warnings():  # of weights removed from the start, and of states without settings: here they are
        warnings.simplefilter("ignore")
        converted = convert(network, config.method)
        _load_state(converted, found.tensors(found.weights))
    return converted.eval()
