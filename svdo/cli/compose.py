"""From ``conf/`` and overrides to a checked ``Config``, for the command line and the reports alike."""

from __future__ import annotations

import copy
import difflib
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import data, methods, models, tasks
from ..config import Choice, Config, RuntimeConfig, TrainConfig
from ..errors import UserError, require
from ..train.optimizers import find as find_optimizer
from . import extensions

CONF = "svdo.conf"

T = TypeVar("T")


def register_choices() -> None:
    """Offer every registered class that has no file in ``conf/``: all methods and tasks, and what users have imported."""
    kinds: dict[str, Mapping[str, type[Choice]]] = {
        "method": methods.METHODS,
        "model": models.MODELS,
        "dataset": data.DATASETS,
        "task": tasks.TASKS,
    }
    for group, choices in kinds.items():
        for name, cls in choices.items():
            if not _has_file(group, name):
                _offer(group, name, cls())
    for name in models.MODELS:
        if not _has_file("train/authors", name) and not _has_file("model", name):
            _offer("train/authors", name, TrainConfig())


def _has_file(group: str, name: str) -> bool:
    return resources.files(CONF).joinpath(*group.split("/"), f"{name}.yaml").is_file()


def _offer(group: str, name: str, choice: Any) -> None:
    node = OmegaConf.create(asdict(choice))  # without types, so that ``_typed`` sees what was written
    for value in node.values():
        if isinstance(value, DictConfig):
            OmegaConf.set_struct(value, False)  # its keys are layer patterns: any is welcome
    ConfigStore.instance().store(group=group, name=name, node=node, provider="svdo")


register_choices()


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
    natural = OmegaConf.create(asdict(tasks.find(data.find(str(_name(parts, "dataset"))).task)()))
    task = parts.pop("task", natural)
    for key in parts.keys() ^ (Config.__dataclass_fields__.keys() - {"task", "imports"}):
        raise UserError(f"{key} is missing" if key not in parts else f"unknown key {key}{_suggestion(key)}")
    for group in ("model", "method", "dataset", "train", "runtime"):
        require(isinstance(parts[group], DictConfig), f"{group}={parts[group]} is no group of settings; choose one")
    config = Config(
        model=_typed("model", parts["model"], models.find(str(parts["model"].get("name")))),
        method=_typed("method", parts["method"], methods.find(str(parts["method"].get("name")))),
        dataset=_typed("dataset", parts["dataset"], data.find(str(parts["dataset"].get("name")))),
        task=_typed("task", task, tasks.find(str(task.get("name")))),
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
    chosen = [*map(type, (config.model, config.dataset, config.method, config.task)), find_optimizer(config.train.optimizer)]
    config.imports = extensions.origins(chosen)
    require(
        not (config.train.best_epoch and isinstance(config.method, methods.Method) and config.method.sparsifies),
        f"train.best_epoch=true would keep an epoch before method={config.method.name} has removed its weights; leave it out",
    )
    return config


def _name(parts: Mapping[str, Any], group: str) -> Any:
    chosen = parts.get(group)
    if not isinstance(chosen, DictConfig):
        raise UserError(f"{group}={chosen} is no group of settings; choose one")
    return chosen.get("name")


def _typed(group: str, values: Any, cls: type[T]) -> T:
    try:
        settings: Any = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
        schema = OmegaConf.structured(cls)
        for key, value in settings.items():
            switch = key in schema and isinstance(schema[key], bool)
            require(not switch or isinstance(value, bool), f"{group}.{key}={value} is neither true nor false")
        result = OmegaConf.to_object(OmegaConf.merge(schema, settings))
    except OverflowError as error:
        raise UserError(f"{group}: a number is too large ({error})") from None
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
        UserError: where ``svdo-run`` would refuse them, or one is of Hydra's own, which say how ``svdo-run`` starts runs.
    """
    for item in overrides:
        require(re.match(r"[+~]*hydra\b", item) is None, f"{item} is for svdo-run alone; leave it out")
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
        return _how_to_write(*error.override.partition("="))
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


def _how_to_write(key: str, equals: str, value: str) -> str:
    """Of an override that Hydra's grammar does not take."""
    if not equals:
        return f"{key} is not key=value"
    if value.startswith("{"):
        better = re.sub(r"[\[\]]", r"\\\g<0>", value)
        hint = "write a backslash before each bracket of a pattern, and quote all for the shell"
        otherwise = "write {pattern: number, ...}, patterns being made of letters, digits, . * ? and \\[ \\]"
    else:
        better = '"' + value.replace('"', r"\"") + '"'
        hint = otherwise = "quote a value with special characters, for the shell too"
    try:
        OverridesParser.create().parse_override(f"{key}={better}")
    except HydraException:
        return f"{key}={value} cannot be read; {otherwise}"
    return f"{key}={value} cannot be read; {hint}: '{key}={better}'"


def _suggestion(key: str) -> str:
    groups: dict[str, list[Any]] = {
        "model": [*models.MODELS.values()],
        "method": [*methods.METHODS.values()],
        "dataset": [*data.DATASETS.values()],
        "task": [*tasks.TASKS.values()],
        "train": [TrainConfig],
        "runtime": [RuntimeConfig],
    }
    keys = [f"{group}.{item}" for group, classes in groups.items() for cls in classes for item in cls.__dataclass_fields__]
    close = difflib.get_close_matches(key, [*Config.__dataclass_fields__, *keys], n=1)
    if close == [key]:
        return f"; the chosen {key.split('.')[0]} has no such setting"
    return (f"; did you mean {close[0]}?" if close else "") + " (svdo-run --help lists all keys)"
