"""Atomic save and checked load of tensors, a file being either whole or not there; and one process at a time at a file."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(binary file)`` on a temporary neighbour of ``path``, flush it to disk and move it into place.

    Raises:
        OSError: naming ``path``, where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def hold(file: int, waiting: Callable[[], None]) -> None:
    """Lock an open file until it is closed; where another process has it locked, call ``waiting`` and wait for it to end."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dicts, loadable with ``torch.load(path, weights_only=True)``."""
    buffer = io.BytesIO()  # since torch, writing to a full disk itself, raises an error that says nothing of it
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote, on the CPU.

    Raises:
        UserError: where the file is damaged. torch itself does not verify the checksums it stores, so they are verified here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged archive can fail anywhere in zipfile, pickle or torch
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); delete this file and train the run anew") from None
    return state


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of every generator that a run on ``device`` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what ``generator_states`` took."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
