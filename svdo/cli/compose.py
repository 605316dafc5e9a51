"""From ``conf/`` and overrides to a checked ``Config``, for the command line and the reports alike."""

from __future__ import annotations

import copy
import difflib
import functools
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import methods, models
from ..config import Config, DatasetConfig, RuntimeConfig, TrainConfig
from ..errors import UserError, require

CONF = "svdo.conf"

T = TypeVar("T")

for _name, _cls in methods.METHODS.items():
    _node = OmegaConf.structured(_cls)
    for _value in _node.values():
        if isinstance(_value, DictConfig):
            OmegaConf.set_struct(_value, False)  # its keys are layer patterns: any is welcome
    ConfigStore.instance().store(group="method", name=_name, node=_node, provider="svdo")


def given(overrides: Sequence[str]) -> dict[str, str]:
    """What overrides say, by key."""
    return dict(item.lstrip("+~").partition("=")[::2] for item in overrides)


def check(cfg: DictConfig, overrides: Sequence[str]) -> Config:
    """What Hydra composed of ``overrides``, as a ``Config``; it lets ``+key=1`` past its own check, so keys are checked again.

    Raises:
        UserError: on a key that does not exist, a value of the wrong type, or one that makes no sense.
    """
    values = given(overrides)
    for group in ("model", "method", "dataset"):
        name = values.get(f"{group}.name")
        require(name is None, f"{group}.name={name} would mix two choices; write {group}={name or '...'}")
    parts = {str(key): value for key, value in cfg.items() if key != "hydra"}
    for key in parts.keys() ^ Config.__dataclass_fields__.keys():
        raise UserError(f"{key} is missing" if key not in parts else f"unknown key {key}{_suggestion(key)}")
    config = Config(
        model=_typed("model", parts["model"], models.find(str(parts["model"].get("name")))),
        method=_typed("method", parts["method"], methods.find(str(parts["method"].get("name")))),
        dataset=_typed("dataset", parts["dataset"], DatasetConfig),
        train=_typed("train", parts["train"], TrainConfig),
        runtime=_typed("runtime", parts["runtime"], RuntimeConfig),
    )
    for key, kind in (("seed", int), ("pretrained", str), ("results_dir", str), ("data_dir", str)):
        value = parts[key]
        if kind is str and type(value) in (int, float):  # a folder may be called 2017, or 2024_06_01
            value = values.get(key, value)
        if type(value) is not kind:
            raise UserError(f"{key}={value} is not of type {kind.__name__}")
        setattr(config, key, value)
    return completed(config)


def completed(config: Config) -> Config:
    """The same with the model's customary rates where the method has none; raises ``UserError`` as ``check`` does."""
    if isinstance(config.method, methods.DropoutMethod) and isinstance(config.model, models.Model):
        config.method.rates = config.method.rates or config.model.dropout
    config.check()
    require(
        not (config.train.best_epoch and isinstance(config.method, methods.Method) and config.method.sparsifies),
        f"train.best_epoch=true would keep an epoch before method={config.method.name} has removed its weights; leave it out",
    )
    return config


def _typed(group: str, values: Any, cls: type[T]) -> T:
    try:
        settings: Any = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), settings))
    except OmegaConfBaseException as error:
        key = str(error.full_key or group)
        key = key if key.split(".")[0] == group else f"{group}.{key}"
        reason = str(error.msg or error).splitlines()[0]
        if "not in" in reason:
            known = [field for field in OmegaConf.structured(cls) if field != "name"]
            raise UserError(f"unknown key {key}; {group} has: {', '.join(map(str, known))}") from None
        raise UserError(f"{key}: {reason}") from None
    assert isinstance(result, cls)
    for field in vars(result):
        require(field in settings, f"{group}.{field} is missing")
    return result


def compose(overrides: Sequence[str]) -> Config:
    """The ``Config`` that ``svdo-run`` with these overrides would train.

    Raises:
        UserError: where ``svdo-run`` would refuse them.
    """
    return copy.deepcopy(_composed(tuple(overrides), os.environ.get("SVDO_DATA")))


@functools.cache
def _composed(overrides: tuple[str, ...], data_dir: str | None) -> Config:
    """Kept, because Hydra takes a tenth of a second and a table asks for the same runs again; ``data_dir`` is its default."""
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        return check(hydra_compose("config", overrides=list(overrides)), overrides)


def explain(error: Exception) -> str:
    """A Hydra or OmegaConf error in one line: what is wrong and what there is to choose from."""
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if not equals:
            return f"{error.override} is not key=value"
        return f"{error.override} cannot be read; quote a value with special characters, for the shell too: '{key}=\"{value}\"'"
    text = str(error) or str(error.__cause__ or "") or type(error).__name__
    if several := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{several.group(1)} has several values, and each is a run: svdo-run -m trains them all"
    if text.startswith("Error merging") and error.__cause__ is not None:
        return f"{text.splitlines()[0].removeprefix('Error merging override ')}: {str(error.__cause__).splitlines()[0]}"
    if missing := re.search(r"Could not override '([^']+)'", text):
        key = missing.group(1)
        inner = re.search(r"Key '([^']+)' is not in struct", str(error.__cause__))
        if inner and inner.group(1) != key.split(".")[-1]:
            return f"{key} has no {inner.group(1)}; add one with +{key}.{inner.group(1)}=..."
        return f"unknown key {key}{_suggestion(key)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if "Could not find" in line), "")
    start = next((i for i, line in enumerate(lines) if "Available options" in line), 0)
    if first and start:
        options = [line for line in lines[start + 1 :] if re.fullmatch(r"[\w/-]+", line)]
        choice = first.split("'")[-2]
        return f"{'='.join(choice.rsplit('/', 1))} is not a choice; take one of: {', '.join(options)}"
    return " ".join(lines[:2])


def _suggestion(key: str) -> str:
    groups: dict[str, list[Any]] = {
        "model": [*models.MODELS.values()],
        "method": [*methods.METHODS.values()],
        "dataset": [DatasetConfig],
        "train": [TrainConfig],
        "runtime": [RuntimeConfig],
    }
    keys = [f"{group}.{item}" for group, classes in groups.items() for cls in classes for item in cls.__dataclass_fields__]
    close = difflib.get_close_matches(key, [*Config.__dataclass_fields__, *keys], n=1)
    if close == [key]:
        return f"; the chosen {key.split('.')[0]} has no such setting"
    return (f"; did you mean {close[0]}?" if close else "") + " (svdo-run --help lists all keys)"
