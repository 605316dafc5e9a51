"""``compose`` for tables: a hundred runs that differ in single settings, each in milliseconds.

Hydra takes a tenth of a second for a run. So it composes each choice of model, data set and training once; the method is its
class, whose defaults are its settings; and plain ``key=value`` overrides are set one by one. Whatever else there is to say,
mistakes included, is Hydra's business: it then composes the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from ..cli.compose import completed
from ..cli.compose import compose as composed_by_hydra
from ..config import Config
from ..errors import UserError
from ..methods import METHODS

CHOICES = ("model", "dataset", "train")
PARTS = (*CHOICES, "method", "runtime")


class _NotPlainError(Exception):
    """Something that only Hydra can say or refuse."""


def compose(overrides: Sequence[str]) -> Config:
    """The ``Config`` that ``svdo-run`` with these overrides would train, as ``svdo.cli.compose.compose`` has it.

    Raises:
        UserError: where ``svdo-run`` would refuse them.
    """
    try:
        return _composed(overrides)
    except (_NotPlainError, UserError, HydraException):
        return composed_by_hydra(overrides)


def _composed(overrides: Sequence[str]) -> Config:
    parsed = [_parsed(item) for item in overrides]
    choices = [str(item.input_line) for item in parsed if item.key_or_group in CHOICES]
    config = composed_by_hydra(sorted(choices))
    methods = [item.value() for item in parsed if item.key_or_group == "method"]
    if methods:
        if len(methods) > 1 or methods[0] not in METHODS:
            raise _NotPlainError
        config.method = METHODS[str(methods[0])]()
    for item in parsed:
        if item.key_or_group not in (*CHOICES, "method"):
            _set(config, item.key_or_group, item.value())
    return completed(config)


@functools.cache
def _parsed(text: str) -> Override:
    (override,) = OverridesParser.create().parse_overrides([text])
    if override.type is not OverrideType.CHANGE or override.is_sweep_override() or override.package is not None:
        raise _NotPlainError
    return override


def _set(config: Config, key: str, value: Any) -> None:
    """Set one setting to a value of the very type that it has, an integer counting as a number; a mapping where it is empty."""
    group, dot, name = key.rpartition(".")
    part = getattr(config, group) if group in PARTS else config
    if bool(dot) != (part is not config) or name in (*PARTS, "name") or name not in vars(part):
        raise _NotPlainError
    before = getattr(part, name)
    if before == {} and isinstance(value, dict):
        value = {_of_type(str, pattern): _of_type(float, number) for pattern, number in value.items()}
    else:
        value = _of_type(type(before), value)
    setattr(part, name, value)


def _of_type(kind: type, value: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind not in (bool, int, float, str) or type(value) is not kind or "$" in str(value):
        raise _NotPlainError
    return value
