"""The method and settings that a network was converted with, as they travel in its ``state_dict``.

They are the bytes of a JSON text in a uint8 tensor, ``<layer>.noise._extra_state``: whatever copies, clones or saves the
tensors of a ``state_dict`` takes them along.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

VERSION = 1
KEY = "_extra_state"  # torch's name of what get_extra_state gives


class UncheckedState(UserWarning):
    """A state that does not say which method and settings it was trained with."""


@contextmanager
def known_otherwise() -> Iterator[None]:
    """Within, a state that says nothing of its method loads without a warning: something else, a record, says it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedState)
        yield


def text(method: str, settings: Mapping[str, Any]) -> str:
    """Method and settings, those that differ from the method's defaults, as JSON; patterns in order, since the last counts."""
    values = {key: list(value.items()) if isinstance(value, Mapping) else value for key, value in settings.items()}
    return json.dumps({"version": VERSION, "method": method, "settings": values}, default=str)


def encode(words: str) -> Tensor:
    """The text's bytes, (length,) uint8."""
    return torch.tensor(list(words.encode()), dtype=torch.uint8)


def check(own: str, state: Mapping[str, Any], prefix: str) -> None:
    """Hold what a state says of the noise under ``prefix`` against the layer's own settings.

    Raises:
        UserError: where they differ, or cannot be read.

    Warns:
        Where the state has such noise but says nothing, being older than these settings.
    """
    given = state.get(prefix + KEY)
    where = f"layer {prefix.removesuffix('noise.').rstrip('.') or 'of the state'}"
    theirs, ours = {} if given is None else _decoded(given, where), json.loads(own or "{}")
    if not theirs:
        if ours and any(key.startswith(prefix) for key in state):
            warnings.warn(
                "the state does not say which method and settings it was trained with, and so they are not checked: it comes"
                " from an earlier version of svdo",
                UncheckedState,
                stacklevel=2,
            )
        return
    if not ours:
        return
    if theirs["version"] > VERSION:
        raise UserError(f"{where}: the state was written by a later version of svdo; update svdo to load it")
    if (theirs["method"], theirs["settings"]) != (ours["method"], ours["settings"]):
        raise UserError(
            f"{where}: the state is of a network converted with {_call(theirs)}, this one with {_call(ours)}; convert with the"
            " same method and settings, then load"
        )


def _decoded(given: Any, where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(bytes(given.to(torch.uint8).tolist()) or "{}")
        whole = found == {} or (
            isinstance(found["version"], int) and isinstance(found["method"], str) and isinstance(found["settings"], dict)
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{where}: what the state says of its method and settings is damaged; load another copy")
    return found


def _call(found: Mapping[str, Any]) -> str:
    """The method and settings as one writes them in a call."""
    values = {key: dict(value) if isinstance(value, list) else value for key, value in found["settings"].items()}
    return ", ".join([json.dumps(found["method"]), *(f"{key}={value!r}" for key, value in values.items())])
