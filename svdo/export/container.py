"""A safetensors file with a description and a checksum in its header: written whole or not at all, read with suspicion."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..runs.disk import write_atomically

VERSION = 1
FORMAT = "svdo"
Description = dict[str, Any]


def check_package() -> None:
    """Raise ``UserError`` where safetensors is not installed."""
    _safetensors()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("safetensors is not installed; install it with: pip install 'svdo[export]'") from None
    return safetensors.torch


def write(path: Path, tensors: dict[str, Tensor], description: Description, overwrite: bool) -> int:
    """Write ``tensors`` and ``description`` (JSON values) and return the file's size in bytes.

    Raises:
        UserError: where the file exists and ``overwrite`` is not set, or it cannot be written.
    """
    path = path.expanduser()
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "description": json.dumps(description, separators=(",", ":"))}
    unsigned = _safetensors().save(own, metadata)
    data = _safetensors().save(own, metadata | {"crc32": _checksum(*_split(unsigned))})
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; name another file, or pass overwrite=True")
    try:
        write_atomically(path, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return len(data)


def read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors and the description of a file that ``write`` wrote.

    Raises:
        UserError: where it cannot be read, is of another program or a newer version of svdo, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        tensors: dict[str, Tensor] = _safetensors().load(data)
        header, body = _split(data)
        metadata = header.get("__metadata__", {})
    except UserError:
        raise
    except Exception:  # bytes that somebody made up can fail anywhere in safetensors or json
        raise UserError(f"{path} is no safetensors file, or damaged") from None
    if metadata.get("format") != FORMAT or "description" not in metadata:
        raise UserError(f"{path} was not written by svdo; load it with safetensors itself")
    if not metadata.get("version", "").isdecimal() or int(metadata["version"][:9]) > VERSION:
        raise UserError(f"{path} was written by a newer version of svdo; install that")
    checksum = metadata.pop("crc32", None)
    try:
        description = json.loads(metadata["description"])
    except (ValueError, RecursionError):
        description = None
    if checksum != _checksum(header, body) or not isinstance(description, dict):
        raise UserError(f"{path} is damaged: its checksum does not fit")
    return tensors, description


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """A safetensors file's header, parsed, and its tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def _checksum(header: dict[str, Any], body: memoryview) -> str:
    """Of everything that the file says but this: names, shapes, description and bytes."""
    start = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    return f"{zlib.crc32(body, start):08x}"
