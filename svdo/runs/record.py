"""A finished run's record, and the one door through which records are read: ``parse``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import data, methods, models, tasks
from ..config import Config, RuntimeConfig, TrainConfig
from ..data.spec import DataSpec
from ..errors import UserError
from . import schema

Record = dict[str, Any]
CHECKSUM = "sha256"
ERROR, CLASSIFICATION = "error", "classification"  # what records of older versions were all about


def parse(text: str | bytes, id: str) -> Record:
    """The record of the run ``id`` that JSON ``text`` holds.

    Raises:
        ValueError: naming the key where a value is missing, unknown, of another type or out of range; where figures contradict
            each other or the checksum; or where it is the record of another run.
    """
    record = read_json(text)
    if not isinstance(record, dict) or record.get("id") != id:
        raise ValueError(f"it is not the record of {id}")
    _check(record)
    if record.get(CHECKSUM, right := checksum(record)) != right:
        raise ValueError("its checksum is not that of its content")
    return record


def seal(record: Record) -> Record:
    """The record with its checksum as the last key; raises ``ValueError`` where reading it would."""
    _check(record)
    return {**record, CHECKSUM: checksum(record)}


def checksum(record: Record) -> str:
    """SHA-256 of the record as JSON without the checksum itself, keys in order and without spaces."""
    rest = {key: value for key, value in record.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(text: str | bytes) -> Any:
    """JSON without the liberties that Python takes: no NaN, no infinity, no key twice; raises ``ValueError``."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_epochs(text: bytes, record: Record | None, headline: str = ERROR) -> list[Record]:
    """The epochs that lines of JSON hold, checked against the ``record`` where the run is finished.

    ``headline`` is the figure that networks of the run's task are compared by; a record knows its own.

    Raises:
        ValueError: naming the epoch and what is wrong.
    """
    headline = headline if record is None else headline_of(record)
    lines = []
    for number, item in enumerate(text.splitlines(), start=1):
        try:
            line = read_json(item)
            schema.epoch(headline)("", line)
            if line["epoch"] != number:
                raise ValueError(f"it says epoch {line['epoch']}")
            judged = [key for key in (f"test_{headline}", f"validation_{headline}") if key in line]
            if len(judged) != 1:
                raise ValueError(f"it needs one of test_{headline} and validation_{headline}")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        lines.append(line)
    if record is not None:
        _check_epochs(lines, record)
    return lines


def headline_of(record: Record) -> str:
    """The name of the figure that the run's network is compared by; in records of older versions always the error."""
    headline = record.get("headline")
    name = headline.get("name") if isinstance(headline, dict) else ERROR
    return name if isinstance(name, str) else ERROR


def config_of(record: Record) -> Config:
    """The configuration that a record was made with; settings that are younger than the record have their defaults.

    Raises:
        UserError: where its model or its method is none of those known here.
        ValueError: where it names a setting that there is not.
    """
    kept = record["config"]
    kinds = {
        "model": models.find(record["model"]),
        "method": methods.find(record["method"]),
        "dataset": data.find(record["dataset"]),
        "train": TrainConfig,
        "runtime": RuntimeConfig,
    }
    parts = {group: _settings(f"config.{group}", kind, kept[group]) for group, kind in kinds.items()}
    task = _settings("config.task", tasks.find(record.get("task", CLASSIFICATION)), kept.get("task", {}))
    return Config(**parts, task=task, seed=kept["seed"], pretrained=kept["pretrained"], imports=kept.get("imports", {}))


def data_of(record: Record, config: Config) -> DataSpec:
    """What a batch of the run's data was; its network can be built from that without the data.

    Raises:
        UserError: where the record is too old to say, and so is its data set.
    """
    assert isinstance(config.dataset, data.Dataset)
    said = record.get("data")
    if said is not None:
        return DataSpec(**{**said, "shape": tuple(said["shape"]), "dtype": getattr(torch, said["dtype"])})
    known = config.dataset.outline()
    if known is None:
        raise UserError(f"the record of {record['id']} does not say what its data are like; train the run anew")
    return known[0]


def _settings(group: str, kind: type, values: Mapping[str, Any]) -> Any:
    default = kind()
    known = {item.name: type(getattr(default, item.name)) for item in dataclasses.fields(default)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{group}.{key} is no setting of this version of svdo")
        if type(value) is not known[key] and (type(value), known[key]) != (int, float):
            raise ValueError(f"{group}.{key} is {json.dumps(value)}, not of type {known[key].__name__}")
    return kind(**values)


def _check(record: Record) -> None:
    schema.record(headline_of(record))("", record)
    _check_counts(record)
    _check_config(record)


def _check_counts(record: Record) -> None:
    """Sums, shares and ratios are those of the counts."""
    layers, weights, nonzero = record["layers"], record["weights"], record["nonzero"]
    for layer in layers:
        name = f"layer {layer['name']}"
        if not max(layer["nonzero"], layer.get("inputs", 0), layer.get("outputs", 0)) <= layer["weights"]:
            raise ValueError(f"{name} keeps more than its {layer['weights']} weights")
        _must_be(f"sparsity of {name}", layer["sparsity"], 100.0 * (1.0 - layer["nonzero"] / layer["weights"]))
    if len({layer["name"] for layer in layers}) < len(layers):
        raise ValueError("two layers have the same name")
    _must_be("weights", weights, sum(layer["weights"] for layer in layers))
    _must_be("nonzero", nonzero, sum(layer["nonzero"] for layer in layers))
    _must_be("sparsity", record["sparsity"], 100.0 * (1.0 - nonzero / weights))
    _must_be("compression", record["compression"], weights / nonzero if nonzero else None)
    if record.get("best_epoch", 0) > record["epochs"]:
        raise ValueError(f"best_epoch {record['best_epoch']} comes after the last epoch, {record['epochs']}")


def _must_be(key: str, found: float | None, right: float | None) -> None:
    known = found is not None and right is not None
    if not (math.isclose(found, right, rel_tol=1e-9, abs_tol=1e-9) if known else found is right):  # type: ignore[arg-type]
        raise ValueError(f"{key} is {found}, and the counts give {right}")


def _check_config(record: Record) -> None:
    """The configuration is the one that the id is a hash of, as far as its model and method are known here."""
    kept = record["config"]
    said = {
        "model": kept["model"].get("name"),
        "dataset": kept["dataset"].get("name"),
        "method": kept["method"].get("name"),
        "seed": kept["seed"],
        "epochs": kept["train"].get("epochs"),
    }
    for key, value in said.items():
        if record[key] != value:
            raise ValueError(f"{key} is {record[key]}, in config {value}")
    head = f"{record['model']}-{record['dataset']}-{record['method']}-s{record['seed']}-"
    if not re.fullmatch(re.escape(head) + "[0-9a-f]{10}", record["id"]):
        raise ValueError(f"id is {record['id']}, and the rest gives {head} and ten hexadecimal digits")
    try:
        config = config_of(record)
    except UserError:  # a model or method of the user's own, which this process has not imported
        return
    if config.id != record["id"]:
        raise ValueError(f"config gives the id {config.id}")


def _check_epochs(lines: Sequence[Record], record: Record) -> None:
    if len(lines) != record["epochs"]:
        raise ValueError(f"it has {len(lines)} epochs, the record {record['epochs']}")
    if not lines:
        return
    kept = lines[record.get("best_epoch", len(lines)) - 1]
    if record.get("objective", kept["train_loss"]) != kept["train_loss"]:
        raise ValueError(f"train_loss of epoch {kept['epoch']} is not the record's objective")
    if abs(lines[-1]["seconds"] - record["seconds"]) > 1e-3:
        raise ValueError("seconds of the last epoch are not the record's")
    names = [layer["name"] for layer in record["layers"]]
    if any(list(line["sparsity"]) != names for line in lines):
        raise ValueError("its layers are not the record's")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(found)}")
    return found
