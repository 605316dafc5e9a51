"""Where the images come from: real bytes, checked before use.

MNIST is part of the package. The other sets are fetched once, from the first source that answers with the right bytes,
and kept as ``<data_dir>/<name>.npz``. Nothing is kept that was not compared with the sums below or, for CIFAR-100, with
those that torchvision brings.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import lzma
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..config import expanded
from ..errors import UserError, require
from . import roads
from .decode import binary, idx, need, sha256
from .known import BINARY, FIELDS, IDX, KNOWN, Array, Arrays, Images

Source = tuple[str, Callable[[], Arrays]]  # what it is called in messages, and what reads it

PREFIX = ".svdo-fetch-"  # then host, process and noise: the temporary folder of one fetch
STALE_SECONDS = 86400.0  # a temporary folder this old belongs to nobody, on whatever host it was made


class UnavailableError(UserError):
    """No source has the data set."""


def load(name: str, data_dir: Path, progress: bool = True) -> Images:
    """Return the data set ``name``, bundled (mnist), cached in ``data_dir``, or fetched into it.

    Raises ``UserError`` where the name is unknown or the stored bytes are not the right ones, ``UnavailableError`` where no
    source has them.
    """
    require(name in KNOWN, f"dataset.name={name} is not a choice; take one of: {', '.join(KNOWN)}")
    if name == "mnist":
        return _bundled()
    path = expanded("data_dir", data_dir) / f"{name}.npz"
    if not os.path.exists(path):
        return fetch(name, path.parent, progress)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return _checked(name, {field: stored[field] for field in FIELDS})
    except (PermissionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); mend that, or name another data_dir=...") from error
    except Exception as error:  # a damaged zip surfaces as almost any type, struct.error among them
        hint = "delete it and repeat the command, it will be fetched again"
        raise UserError(f"{path} is damaged ({_reason(error)}); {hint}") from error


def fetch(name: str, data_dir: Path, progress: bool = True) -> Images:
    """Get the data set ``name`` (not mnist) from the first source that has it; write ``<data_dir>/<name>.npz``.

    Files in torchvision's layout under ``data_dir`` come first; they serve even where ``data_dir`` cannot be written.
    Raises ``UnavailableError`` where every source fails, naming each, or ``UserError`` where ``data_dir`` cannot be written.
    """
    data_dir = expanded("data_dir", data_dir)
    local = _local_sources(name, data_dir)
    failures = [] if local else [f"local files: no {KNOWN[name].layout} in {data_dir}"]
    images = _first(name, local, failures)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        _remove_dead_folders(data_dir)
        prefix = f"{PREFIX}{socket.gethostname()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=prefix, ignore_cleanup_errors=True) as work:
            images = images or _first(name, _remote_sources(name, Path(work), progress), failures)
            if images:
                _store(images, Path(work) / "cache.npz", data_dir / f"{name}.npz")
    except OSError as error:
        if images is None:
            raise UserError(
                f"data_dir={data_dir} cannot be written ({_reason(error)}); name a folder that can with data_dir=..."
            ) from error
        _say(f"{name} is not kept for next time: {data_dir} cannot be written ({_reason(error)})")
    if images is None:
        known = KNOWN[name]
        client = f", or install {known.package.command[0]}" if known.package else ""
        raise UnavailableError(
            f"{name} could not be fetched: {'; '.join(failures)}. Put its files in torchvision's layout "
            f"({known.layout}) under data_dir={data_dir}{client}, or open the network, and repeat the command"
        )
    return images


def _first(name: str, sources: Iterable[Source], failures: list[str]) -> Images | None:
    for label, read in sources:
        _say(f"fetching {name}: {label} ...")
        try:
            return _checked(name, read())
        except Exception as error:  # whatever a source dies of, the next one may still do
            failures.append(f"{label}: {_reason(error)}")
            _say(f"fetching {name}: {label} failed: {_reason(error)}")
    return None


def _local_sources(name: str, data_dir: Path) -> list[Source]:
    readers: dict[str, Callable[[], Arrays]] = {KNOWN[name].layout: lambda: roads.layout(name, data_dir)}
    if name == "cifar10":
        readers[BINARY] = lambda: binary(data_dir / BINARY)
    present = [folder for folder in readers if os.path.isdir(data_dir / folder)]
    return [(f"local files {data_dir / folder}", readers[folder]) for folder in present]


def _remote_sources(name: str, work: Path, progress: bool) -> Iterable[Source]:
    yield "torchvision download", lambda: roads.download(name, work / "torchvision", progress)
    if package := KNOWN[name].package:
        read = roads.npm if name == "cifar10" else roads.deb
        yield " ".join(package.command[:3]), lambda: read(roads.packed(package, work / "package"))


def _bundled() -> Images:
    arrays: Arrays = {}
    for field, stem in IDX.items():
        file = importlib.resources.files("svdo").joinpath("mnist", f"{stem}-ubyte.xz")
        try:
            arrays[field] = idx(lzma.decompress(file.read_bytes()))
            _check("mnist", field, arrays[field])
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise UserError(f"{file} is missing or damaged ({_reason(error)}); reinstall svdo") from error
    return Images(**arrays, classes=KNOWN["mnist"].classes)


def _checked(name: str, arrays: Arrays) -> Images:
    for field in FIELDS:
        _check(name, field, arrays[field])
    return Images(**arrays, classes=KNOWN[name].classes)


def _check(name: str, field: str, array: Array) -> None:
    known = KNOWN[name]
    count = known.train if field.startswith("train") else known.test
    shape = (count, *known.shape) if field.endswith("images") else (count,)
    need(array.dtype == np.uint8 and array.shape == shape, f"{field} is {array.dtype} {array.shape}, not {shape}")
    if field.endswith("labels"):
        need(int(array.max()) < known.classes, f"{field} has a label above {known.classes - 1}")
    if known.sums:
        need(sha256(array.data) == known.sums[FIELDS.index(field)], f"{field} has not the pinned SHA-256")


def _store(images: Images, temporary: Path, path: Path) -> None:
    with temporary.open("wb") as file:
        np.savez(file, **{field: getattr(images, field) for field in FIELDS})
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove_dead_folders(data_dir: Path) -> None:
    for folder in data_dir.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # already removed by another process, or not ours by its name
            host, pid, _ = folder.name.removeprefix(PREFIX).rsplit("-", 2)
            here = host == socket.gethostname() and os.name == "posix"  # on Windows the probe would end the process
            if (here and not _alive(int(pid))) or time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as another user's
        pass
    return True


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:237]}..."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
