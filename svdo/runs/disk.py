"""Files that are whole or not there, also after a power cut; and one process at a time at a folder. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ..errors import UserError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCKED_BYTE = 2**30  # Windows locks bytes and keeps others from reading them, so not those that name the holder


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(binary file)`` on a temporary neighbour of ``path`` and move it into place; both are on disk on return.

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
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def make_folder(folder: Path) -> None:
    """Create the folder and those above it that are missing, each known to the one above it even after a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    """A file that was moved into a folder is found there after a power cut only once the folder is on disk, too."""
    if os.name == "nt":  # folders cannot be opened there
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def try_lock(file: int) -> bool:
    """Lock an open file until it is closed, or return False where another process has it locked."""
    if fcntl is None:
        return _windows_lock(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(file: int) -> bool:
    """Whether another process has the open file locked; to ask keeps nobody else from locking it, on Windows for a moment."""
    if fcntl is None:
        return not _windows_lock(file)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def hold(file: int, waiting: Callable[[], None]) -> None:
    """Lock an open file until it is closed; where another process has it locked, call ``waiting`` and wait for it to end."""
    if try_lock(file):
        return
    waiting()
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    while not _windows_lock(file):
        time.sleep(0.1)


def _windows_lock(file: int) -> bool:
    import msvcrt

    windows: Any = msvcrt  # elsewhere the type checker does not know what is in it
    os.lseek(file, LOCKED_BYTE, os.SEEK_SET)
    try:
        windows.locking(file, windows.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True


class Lock:
    """A file that one process holds, its number written in it; deleting the file does not let a second one in unnoticed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def hold(self, waiting: Callable[[str], None]) -> None:
        """Lock the file; where another process holds it, call ``waiting`` with that process's number and wait for it to end.

        Raises:
            OSError: where the file cannot be written.
        """
        while self._file is None:
            file = open(self.path, "a+b")  # noqa: SIM115 - held until release
            hold(file.fileno(), functools.partial(_ask_for, file, waiting))
            self._file = self._taken(file)

    def check(self) -> None:
        """Make sure that no other process has come in since ``hold``; a file that was only deleted is put back.

        Raises:
            UserError: where the file is another one now.
        """
        if self._file is None or self._is_current(self._file):
            return
        file = None
        with contextlib.suppress(OSError):
            file = open(self.path, "x+b")  # noqa: SIM115 - held until release; x: whoever puts it back goes on, and no other
        taken = self._taken(file) if file and try_lock(file.fileno()) else None
        if taken is None:
            raise UserError(
                f"{self.path} was deleted and another process may be training this run now, so this one stops and writes"
                " nothing more; repeat the command to go on"
            )
        self._file.close()
        self._file = taken

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _taken(self, file: IO[bytes]) -> IO[bytes] | None:
        """The locked file with this process's number in it; None where it was deleted or replaced before it was locked."""
        if not self._is_current(file):
            file.close()
            return None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        return file

    def _is_current(self, file: IO[bytes]) -> bool:
        """Whether the open file is the one at the path."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False


def _ask_for(file: IO[bytes], waiting: Callable[[str], None]) -> None:
    """Call ``waiting`` with the number in the file, as far as it is one."""
    file.seek(0)
    number = file.read(20).decode("ascii", "replace")
    waiting(number if number.isdecimal() else "?")
