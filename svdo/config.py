"""What a run is: its schema, its strict check, its identity. Imports no torch.

A run is a value: model, dataset, method, train, seed and (if any) the run whose weights it starts from. Its id is a
hash of those alone, so where it runs, where results go and how fast it is computed never change which run it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError, require

MAX_SEED = 2**31 - 1
MAX_INT = 2**63 - 1  # torch's integers
MAX_FLOAT = 3.4e38  # and its 32-bit numbers
MAX_THREADS = 1024
PRECISIONS = ("fp32", "bf16_variance", "bf16", "auto")


@dataclass
class Choice:
    """A named option of a config group (a model, a data set, a method, a task); subclasses add their fields."""

    name: str = ""

    def check(self) -> None:
        """Raise ``UserError`` where a field's value, though of the right type, makes no sense."""


@dataclass
class TrainConfig:
    """How long and how fast; the schedules are shares of the whole training, so ``epochs`` is one dial."""

    epochs: int = 200
    batch_size: int = 100
    optimizer: str = "adam"  # of the weights; noise parameters always learn with Adam
    lr: float = 1e-3
    lr_flat: float = 0.5  # the learning rate is constant for this share of training, then linear to 0
    kl_start: float = 0.025  # the KL weight is 0 up to this share of training,
    kl_full: float = 0.1  # then grows linearly to kl_peak at this share,
    kl_peak: float = 1.0  # from which
    kl_settled: float = 1.0  # it falls linearly to 1 at this one
    kl_weight: float = 1.0  # all of that counts so many times: 1 is the papers' bound, less keeps more weights
    noise_lr: float = 1.0  # noise parameters learn at so many times lr,
    noise_waits: bool = False  # and that times the warm-up, 0 to 1: not at all before the KL acts
    momentum: float = 0.9  # Adam's beta 1, or SGD's momentum
    weight_decay: float = 0.0  # gradient wd * w on weight matrices and filters; never on noise parameters, biases, norms
    adam_eps: float = (
        1e-8  # beside the root of Adam's second moment; the authors' loss is N times ours, so theirs is 1e-8 / N here
    )
    per_epoch: bool = False  # learning rate and KL weight move with every epoch, as in the authors' code, not with every step
    averaging: float = 0.0  # decay of the exponential moving average over steps that is evaluated (0: the last step's network)
    best_epoch: bool = False  # the record is of the epoch with the least validation error, the first of those, not of the last

    def check(self) -> None:
        """Raise ``UserError`` on an unknown choice or an impossible number."""
        at_least("train.epochs", self.epochs, 0)
        at_least("train.batch_size", self.batch_size, 1)
        at_least("train.lr", self.lr, 0.0)
        at_least("train.weight_decay", self.weight_decay, 0.0)
        at_least("train.noise_lr", self.noise_lr, 0.0)
        at_least("train.kl_weight", self.kl_weight, 0.0)
        at_least("train.adam_eps", self.adam_eps, 0.0)
        for key in ("lr_flat", "kl_start", "kl_full", "kl_settled"):
            between(f"train.{key}", getattr(self, key), 0.0, 1.0)
        for key in ("momentum", "averaging"):
            value = getattr(self, key)
            require(0.0 <= value < 1.0, f"train.{key}={value} is out of range; it must lie in [0, 1)")
        require(self.kl_start <= self.kl_full, "train.kl_start must not exceed train.kl_full")
        require(self.kl_full <= self.kl_settled, "train.kl_full must not exceed train.kl_settled")
        require(self.kl_peak >= 1.0, f"train.kl_peak={self.kl_peak} is out of range; it must be at least 1")


@dataclass
class RuntimeConfig:
    """How a run is computed; never part of what it is."""

    device: str = "auto"  # auto: cuda where there is one, else cpu
    precision: str = "fp32"  # auto: bf16 where the device has instructions for it, else fp32
    threads: int = 0  # 0: torch's own choice
    compile: bool = False  # torch.compile of the training pass; on CUDA replayed as captured graphs
    snapshots: int = 0  # keep the thresholded weights after every so many epochs, beside the record (0: never)
    progress: bool = True

    def check(self) -> None:
        """Raise ``UserError`` on an unknown choice or an impossible number."""
        one_of("runtime.precision", self.precision, PRECISIONS)
        between("runtime.threads", self.threads, 0, MAX_THREADS)
        at_least("runtime.snapshots", self.snapshots, 0)


@dataclass
class Config:
    """One run, checked. ``model``, ``dataset``, ``method`` and ``task`` hold the chosen subclasses of ``Choice``.

    ``imports`` are the user's own modules that some of these come from, each with the SHA-256 of its source.
    """

    model: Choice
    dataset: Choice
    method: Choice
    task: Choice
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    pretrained: str = ""  # id of the finished run whose weights this one starts from
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    results_dir: str = "results"
    data_dir: str = "~/.cache/svdo"
    imports: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ``UserError`` where a value of the right type makes no sense."""
        for group in ("model", "dataset", "method", "task", "train", "runtime"):
            check_part(group, getattr(self, group))
        require(
            not self.train.best_epoch or getattr(self.dataset, "validation", 1) > 0,
            "train.best_epoch=true chooses the epoch on held-out images; hold some out with dataset.validation=10000",
        )
        between("seed", self.seed, 0, MAX_SEED)
        require(
            self.pretrained == Path(self.pretrained).name,
            f"pretrained={self.pretrained} is no run's id; write the name of its folder alone",
        )
        for key in ("results_dir", "data_dir"):
            require(bool(getattr(self, key)), f"{key} is empty; write the folder's path, . for the current one")
            if getattr(self, key) != getattr(type(self), key):  # a user without a home needs none for bundled data
                expanded(key, getattr(self, key))

    def identity(self) -> dict[str, Any]:
        """The values that define the run, without those that equal their defaults (a new field orphans no old run)."""
        parts = {key: _non_default(getattr(self, key)) for key in ("model", "dataset", "method", "train")}
        parts["model"].pop("dropout", None)  # it counts where a method takes its rates from it, and then as the method's
        for key, value in parts["method"].items():
            if isinstance(value, dict) and any(character in pattern for pattern in value for character in "*?["):
                parts["method"][key] = list(value.items())  # the last pattern that matches counts, so their order does
        parts["model"]["name"], parts["method"]["name"] = self.model.name, self.method.name
        parts["dataset"]["name"] = self.dataset.name
        task = _non_default(self.task)
        if task or self.task.name != getattr(self.dataset, "task", ""):  # what the data set brings is no choice
            parts["task"] = {**task, "name": self.task.name}
        return parts | {"seed": self.seed} | ({"pretrained": self.pretrained} if self.pretrained else {})

    @property
    def id(self) -> str:
        """The run's name and folder: readable head, then 10 hexadecimal digits of the identity's SHA-256."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.model.name}-{self.dataset.name}-{self.method.name}-s{self.seed}-{digest}"

    def as_dict(self) -> dict[str, Any]:
        """Every value, resolved, as plain containers, without paths: what the record of a run keeps."""
        everything = dataclasses.asdict(self)
        if not self.imports:
            del everything["imports"]
        return {key: value for key, value in everything.items() if not key.endswith("_dir")}


def _non_default(part: Any) -> dict[str, Any]:
    default = type(part)()
    return {
        item.name: getattr(part, item.name)
        for item in dataclasses.fields(part)
        if getattr(part, item.name) != getattr(default, item.name)
    }


def one_of(key: str, value: str, options: Collection[str]) -> None:
    """Raise ``UserError`` listing ``options`` unless ``value`` is one of them."""
    require(value in options, f"{key}={value} is not a choice; take one of: {', '.join(options)}")


def at_least(key: str, value: float, low: float) -> None:
    """Raise ``UserError`` where ``value`` is below ``low``."""
    require(value >= low, f"{key}={value} is too small; it must be at least {low}")


def between(key: str, value: float, low: float, high: float) -> None:
    """Raise ``UserError`` unless ``low`` <= ``value`` <= ``high``."""
    require(low <= value <= high, f"{key}={value} is out of range; it must lie between {low} and {high}")


def expanded(key: str, path: str | Path) -> Path:
    """The path with the home of ~ or ~user in place; raises ``UserError`` where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        lacking = "there is no such user" if str(path).split("/")[0] != "~" else "there is no home folder (HOME is not set)"
        raise UserError(f"{key}={path}: {lacking}; write the folder's path") from None


def check_rates(key: str, rates: Mapping[str, float]) -> None:
    """Raise ``UserError`` unless every dropout rate of the pattern -> rate mapping lies in [0, 1)."""
    check_mapping(key, rates)
    for pattern, rate in rates.items():
        require(0.0 <= rate < 1.0, f"{key}[{pattern}]={rate} is no dropout rate; it must lie in [0, 1)")


def check_mapping(key: str, values: Any) -> None:
    """Raise ``UserError`` unless ``values`` is a mapping of layer patterns to numbers."""
    require(
        isinstance(values, Mapping), f"{key}={values} is no mapping of layer patterns to numbers, such as {{'*': {values}}}"
    )
    for pattern, value in values.items():
        require(isinstance(pattern, str), f"{key}: {pattern} is no pattern of layer names; write it in quotes")
        _of_type(f"{key}[{pattern}]", value, float)


def check_part(group: str, part: Any) -> None:
    """``part.check()``, and ``UserError`` where a field is not of the type of its default, or a number is not finite."""
    for key, default in vars(type(part)()).items():
        if isinstance(default, Mapping):
            check_mapping(f"{group}.{key}", getattr(part, key))
        else:
            _of_type(f"{group}.{key}", getattr(part, key), type(default))
    part.check()
    for key, value in vars(part).items():
        for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            where = f"{group}.{key}{f'[{name}]' * bool(name)}"
            if isinstance(number, float):
                require(math.isfinite(number), f"{where}={number} is not a finite number")
            if isinstance(number, int | float):
                largest = MAX_FLOAT if isinstance(number, float) else MAX_INT
                require(abs(number) <= largest, f"{where}={number} is too large; numbers end at {largest:g}")


def _of_type(key: str, value: Any, kind: type) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    require(fits, f"{key}={value} is not of type {'number' if kind is float else kind.__name__}")
