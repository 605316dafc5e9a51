"""Save and checked load of tensors in files that say which run they belong to; and the states of random generators."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .disk import write_atomically

OWNER = "archive/svdo.json"  # in the zip archive that torch writes, which ignores it: a file of tensors alone stays just that


def save(path: Path, state: dict[str, Any], run: str = "") -> None:
    """Save tensors, numbers, strings, lists and dicts, loadable with ``torch.load(path, weights_only=True)``.

    ``run``, the id of the run that the file belongs to, is stored beside them.
    """
    buffer = io.BytesIO()  # since torch, writing to a full disk itself, raises an error that says nothing of it
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(OWNER), json.dumps({"run": run}))
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path, run: str = "", sha256: str = "") -> dict[str, Any]:
    """What ``save`` wrote, on the CPU.

    Args:
        path: the file.
        run: the id of the run that it must belong to; a file of an older version, which names none, is taken as it is.
        sha256: the hash that it must have, in hexadecimal digits.

    Raises:
        UserError: where the file is damaged or another run's. torch itself does not verify the checksums it stores, so they
            are verified here.
    """
    try:
        content = read(path, run, sha256)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except UserError:
        raise
    except Exception as error:  # a damaged archive can fail anywhere in pickle or torch
        raise _damaged(path, error) from None
    return state


def read(path: Path, run: str = "", sha256: str = "") -> bytes:
    """The content of a file that ``save`` wrote, its checksums and its owner being right; arguments and errors as ``load``."""
    try:
        content = path.read_bytes()
        owner = _owner(content)
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is not the file that the record was written with")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged archive can fail anywhere in zipfile
        raise _damaged(path, error) from None
    if run and owner and owner != run:
        raise UserError(f"{path} belongs to the run {owner}; put this run's own back, or delete it and train the run anew")
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged ({reason}); delete this file and train the run anew")


def _owner(content: bytes) -> str:
    """The id of the run that the archive belongs to, empty in one of an older version; raises where a checksum is wrong."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken}")
        return str(json.loads(archive.read(OWNER))["run"]) if OWNER in archive.namelist() else ""


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
