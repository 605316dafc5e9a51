"""From the bytes of published files to arrays."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from .known import BATCHES, IDX, Array, Arrays


def binary(folder: Path) -> Arrays:
    """CIFAR-10 in its "binary version"."""
    arrays: Arrays = {}
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        rows = np.concatenate([np.fromfile(folder / f"{batch}.bin", np.uint8).reshape(-1, 3073) for batch in batches])
        arrays[f"{part}_images"] = np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = rows[:, 0].copy()
    return arrays


def sheets(files: Mapping[str, bytes]) -> Arrays:
    """CIFAR-10 as sheets of PNG, one image per row of 1024 pixels, with labels as JSON."""
    from PIL import Image

    arrays: Arrays = {}
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        sheets = [np.asarray(Image.open(io.BytesIO(files[f"{batch}.png"]))) for batch in batches]
        arrays[f"{part}_images"] = np.concatenate(sheets).reshape(-1, 32, 32, 3)
        arrays[f"{part}_labels"] = np.array(json.loads(files[f"{part}_lables.json"]), dtype=np.uint8)  # spelt so
    return arrays


def fashion(files: Mapping[str, bytes]) -> Arrays:
    """Four IDX files, packed or not, by base name."""
    arrays: Arrays = {}
    for field, stem in IDX.items():
        file = f"{stem}-ubyte"
        need(file in files or f"{file}.gz" in files, f"{file} is missing")
        arrays[field] = idx(files[file] if file in files else gzip.decompress(files[f"{file}.gz"]))
    return arrays


def idx(raw: bytes) -> Array:
    """Labels (N,) or images (N, H, W, 1) of an IDX file; raises ``ValueError`` where it is none."""
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    need(rank in (1, 3) and len(raw) >= 4 + 4 * rank, "it is no IDX file of bytes")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", rank, 4)]
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()  # a copy, for it is writable
    return pixels if rank == 1 else pixels[..., None]


def unpack(file: io.BytesIO) -> dict[str, bytes]:
    """The regular files of a tar, by base name and in memory, so that no path of the archive's is ever written to."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            if content := tar.extractfile(member) if member.isfile() else None:
                found[PurePosixPath(member.name).name] = content.read()
    return found


def sha256(data: bytes | memoryview) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def need(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)
