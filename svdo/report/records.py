"""Records, each read once in a process and again where its file has changed. Whoever gets one leaves it as it is."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

from ..errors import UserError
from ..runs import Record, Run


def read(run: Run) -> Record | None:
    """``run.result()``: its record, or None while it is not done; raises ``UserError`` where the file is damaged."""
    try:
        found = run.record.stat()
    except OSError:
        return run.result()
    return _read(str(run.folder), found.st_ino, found.st_mtime_ns, found.st_size)


def finished(results_dir: str | Path) -> list[Record]:
    """The records of all runs that are done, by id.

    Warns:
        UserWarning: of a damaged one, which is left out: it stops whoever asks for that run.
    """
    found = []
    for folder in sorted((Path(results_dir).expanduser() / "runs").glob("*/")):
        try:
            record = read(Run(results_dir, folder.name))
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        if record:
            found.append(record)
    return found


@functools.cache
def _read(folder: str, inode: int, changed: int, size: int) -> Record | None:
    place = Path(folder)
    return Run(place.parent.parent, place.name).result()
