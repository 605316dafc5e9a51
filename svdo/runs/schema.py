"""Every key that the runner writes into a record or an epoch's line, with what its value may be.

A check is called with a key's dotted name and its value and raises ``ValueError`` naming it. A key that is not here, or one
that is missing, is an error and nothing to step over: a mean over runs must not lose one in silence. What older versions did
not write yet is optional.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Any], None]

VERSION = 1
LARGEST, LARGEST_COUNT = sys.float_info.max, 2**63 - 1
ROUNDING = 1e-6  # probabilities in float32 add up to 1 and a little more


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number, no boolean, from ``low`` to ``high``."""

    def check(key: str, value: Any) -> None:
        _require(type(value) in (int, float) and -LARGEST <= value <= LARGEST, key, value, "no finite number")
        _require(low - ROUNDING <= value <= high + ROUNDING, key, value, f"not between {low:g} and {high:g}")

    return check


def count(low: int = 0) -> Check:
    """A whole number, no boolean, of at least ``low``."""

    def check(key: str, value: Any) -> None:
        _require(type(value) is int and low <= value <= LARGEST_COUNT, key, value, f"no whole number from {low} on")

    return check


def of_type(kind: type) -> Check:
    """Text or a boolean."""

    def check(key: str, value: Any) -> None:
        _require(type(value) is kind, key, value, f"not of type {kind.__name__}")

    return check


def matching(pattern: str, what: str) -> Check:
    """Text of the pattern's form."""

    def check(key: str, value: Any) -> None:
        _require(isinstance(value, str) and re.fullmatch(pattern, value) is not None, key, value, f"no {what}")

    return check


def or_null(inner: Check) -> Check:
    """Nothing, or what ``inner`` allows."""

    def check(key: str, value: Any) -> None:
        if value is not None:
            inner(key, value)

    return check


def mapping(inner: Check) -> Check:
    """From names to what ``inner`` allows."""

    def check(key: str, value: Any) -> None:
        _require(isinstance(value, dict), key, value, "no mapping")
        for name, item in value.items():
            inner(f"{key}.{name}", item)

    return check


def sequence(inner: Check) -> Check:
    """One or more of what ``inner`` allows."""
    several = list_of(inner)

    def check(key: str, value: Any) -> None:
        _require(isinstance(value, list) and len(value) > 0, key, value, "no list of anything")
        several(key, value)

    return check


def list_of(inner: Check) -> Check:
    """A list, empty or of what ``inner`` allows."""

    def check(key: str, value: Any) -> None:
        _require(isinstance(value, list), key, value, "no list")
        for place, item in enumerate(value):
            inner(f"{key}.{place}", item)

    return check


def keys(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """A mapping with these keys and no others."""

    def check(key: str, value: Any) -> None:
        _require(isinstance(value, dict), key, value, "no mapping")
        within = f"{key}." if key else ""
        for name in required:
            if name not in value:
                raise ValueError(f"{within}{name} is missing")
        for name, item in value.items():
            known = required.get(name) or optional.get(name)
            if known is None:
                raise ValueError(f"{within}{name} is no key that this version of svdo knows")
            known(f"{within}{name}", item)

    return check


def version(key: str, value: Any) -> None:
    """The version of this schema."""
    _require(type(value) is int and value == VERSION, key, value, f"not {VERSION}, the version that this svdo reads")


def setting(key: str, value: Any) -> None:
    """What a configuration can hold; its own classes know more."""
    if isinstance(value, dict):
        mapping(number())(key, value)
    elif type(value) not in (str, bool):
        number()(key, value)


def _require(right: bool, key: str, value: Any, wrong: str) -> None:
    if not right:
        shown = json.dumps(value, default=str)
        raise ValueError(f"{key or 'it'} is {wrong}: {shown if len(shown) <= 40 else shown[:40] + '...'}")


TEXT, FLAG = of_type(str), of_type(bool)
PERCENT, SECONDS = number(0, 100), number(0)
HASH = matching("[0-9a-f]{64}", "SHA-256 in hexadecimal digits")
RATIO = or_null(number(1))  # null: nothing is left to divide by

_METRICS = {"error": PERCENT, "nll": number(0), "ece": PERCENT, "brier": number(0, 2)}
_LAYER = {"name": TEXT, "weights": count(1), "nonzero": count(), "sparsity": PERCENT}
_LAYER_LATER = {"inputs": count(), "outputs": count(), "rate": or_null(number(0, 1))}
_CONFIG = {
    **dict.fromkeys(("model", "dataset", "method", "train", "runtime"), mapping(setting)),
    "seed": count(),
    "pretrained": TEXT,
}
_ORIGIN = {
    "commit": matching(r"([0-9a-f]{40,64}\+?)?", "commit"),
    **dict.fromkeys(("torch", "python", "device", "precision", "started"), TEXT),
    "threads": count(1),
    "host_cores": or_null(count(1)),
}
_ORIGIN_LATER = {"compile": FLAG}

_DATA = {
    "shape": list_of(count()),
    "classes": count(),
    "vocabulary": count(),
    "dtype": matching("(float|int)(16|32|64)|uint8|bool|bfloat16", "type of torch's"),
    "carried": FLAG,
}
_HEADLINE = {"name": TEXT, "unit": TEXT, "better": matching("lower|higher", "way to be better")}


@functools.cache
def record(headline: str) -> Check:
    """Of a finished run whose networks are compared by ``headline``."""
    metrics = _metrics(headline)
    return keys(
        {
            "schema": version,
            "id": TEXT,
            "model": TEXT,
            "dataset": TEXT,
            "method": TEXT,
            "seed": count(),
            "config": keys(_CONFIG, {"task": mapping(setting), "imports": mapping(HASH)}),
            "test": keys(*metrics),
            "train": keys(*metrics),
            "layers": sequence(keys(_LAYER, _LAYER_LATER)),
            "weights": count(1),
            "nonzero": count(),
            "sparsity": PERCENT,
            "compression": RATIO,
            "epochs": count(),
            "seconds": SECONDS,
            "provenance": keys(_ORIGIN, {**_ORIGIN_LATER, "earlier": sequence(keys(_ORIGIN, _ORIGIN_LATER))}),
        },
        {
            "task": TEXT,
            "headline": keys(_HEADLINE, {}),
            "data": keys(_DATA, {}),
            "storage": or_null(number(0)),
            "core_seconds": SECONDS,
            "validation": keys(*metrics),
            "test_sampled": keys({**metrics[0], "samples": count(1)}, metrics[1]),
            "test_running_statistics": keys(*metrics),
            "objective": number(),
            "best_epoch": count(1),
            "files": mapping(HASH),
            "sha256": HASH,
        },
    )


@functools.cache
def epoch(headline: str) -> Check:
    """Of an epoch's line."""
    figure = PERCENT if headline == "error" else number()
    return keys(
        {
            "epoch": count(1),
            "lr": number(0),
            "kl_weight": number(0),
            "train_loss": number(),
            "kl": number(),
            f"train_{headline}": figure,
            "sparsity": mapping(PERCENT),
            "compression": RATIO,
            "seconds": SECONDS,
        },
        {f"test_{headline}": figure, f"validation_{headline}": figure},
    )


def _metrics(headline: str) -> tuple[Mapping[str, Check], Mapping[str, Check]]:
    """Those that must be there, and those that may; of a task that is not known here, whatever it measures."""
    if headline == "error":
        return _METRICS, {}
    return {"nll": number(), headline: number()}, _Anything()


class _Anything(dict[str, Check]):
    """Every key, with a number."""

    def get(self, key: str, default: Any = None) -> Check:
        return number()
