"""The run store, ``<results_dir>/runs/<id>/``: open, lock, append, finish, query. Every file name in one place.

result.json    the record, written last and atomically: its presence means the run is done
metrics.jsonl  one line per epoch
weights.pt     the trained network, tensors only
epoch-N.pt     with runtime.snapshots, the thresholded weights after epoch N
checkpoint.pt  where to resume; gone once the run is done
lock           held while a process trains the run
error.txt      the traceback of the last failure that was no mistake of the user; gone once the run is done
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from .checkpoint import hold, write_atomically

Record = dict[str, Any]
REBUILT = "rebuilt"
RECORD = {
    "schema",
    "id",
    "model",
    "method",
    "config",
    "test",
    "layers",
    "weights",
    "compression",
    "epochs",
    "seconds",
    "provenance",
}


class Run:
    """One run's folder; nothing is created before ``open``."""

    def __init__(self, results_dir: str | Path, id: str) -> None:
        self.id = id
        self.folder = Path(results_dir).expanduser() / "runs" / id
        self.checkpoint = self.folder / "checkpoint.pt"
        self.weights = self.folder / "weights.pt"
        self.error = self.folder / "error.txt"
        self.record = self.folder / "result.json"
        self._metrics = self.folder / "metrics.jsonl"

    def snapshot(self, epoch: int) -> Path:
        """Where the thresholded weights after that epoch are kept."""
        return self.folder / f"epoch-{epoch}.pt"

    def snapshots(self) -> dict[int, Path]:
        """The files that ``snapshot`` named and that exist, by epoch in order."""
        found = {int(path.stem.removeprefix("epoch-")): path for path in self.folder.glob("epoch-*.pt")}
        return dict(sorted(found.items()))

    def result(self) -> Record | None:
        """The record, or None while the run is not done; raises ``UserError`` where the file is damaged."""
        try:
            record: Record = json.loads(self.record.read_text("utf-8"))
            if not isinstance(record, dict) or record.get("id") != self.id or not record.keys() >= RECORD:
                raise ValueError(f"it is not the record of {self.id}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.record} cannot be read ({error}); restore it, or delete it to train anew") from None
        return record

    @contextmanager
    def open(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Create the folder and hold the run's lock; where another process holds it, say so and wait for it to end.

        Raises:
            UserError: where the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / "lock", "a+")  # noqa: SIM115 - the with statement below closes it
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; name another folder with results_dir=..."
            ) from None
        with lock:
            hold(
                lock.fileno(), lambda: waiting(f"{self.id} is being trained by process {_holder(lock)}; waiting for it to end")
            )
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            yield

    def busy(self) -> bool:
        """Whether some process is training it now."""
        with contextlib.suppress(OSError), open(self.folder / "lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who only asks is not busy to others
            except BlockingIOError:
                return True
        return False

    def epochs(self) -> list[Record]:
        """The lines of ``metrics.jsonl``, oldest first."""
        try:
            return [json.loads(line) for line in self._metrics.read_text("utf-8").splitlines()]
        except FileNotFoundError:
            return []

    def append(self, line: Record) -> None:
        """Add an epoch's line."""
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_epochs_after(self, epoch: int) -> None:
        """Keep the first ``epoch`` lines: what a killed process wrote after its last checkpoint is trained, and said, again.

        Raises:
            UserError: where these lines are not there, or damaged.
        """
        try:
            whole = self._metrics.read_bytes().splitlines(keepends=True)[:epoch] if self._metrics.exists() else []
            if [json.loads(line)["epoch"] for line in whole] != list(range(1, epoch + 1)):
                raise ValueError(f"it lacks epochs before {epoch + 1}")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._metrics} is damaged ({error}); restore it, or delete the folder to train anew") from None
        if self._metrics.exists():
            write_atomically(self._metrics, lambda file: file.write(b"".join(whole)))

    def finish(self, record: Record) -> None:
        """Write the record, then drop what only resuming needs."""
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        write_atomically(self.record, lambda file: file.write(text.encode()))
        for path in (self.checkpoint, self.error):
            path.unlink(missing_ok=True)


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip() or "?"


def copies(results_dir: str | Path, id: str) -> Iterator[Run]:
    """The run in its own place, and where it is trained again for what is not kept with its record."""
    yield from (Run(store, id) for store in (results_dir, Path(results_dir) / REBUILT))


def with_weights(results_dir: str | Path, id: str) -> Run | None:
    """The run where its weights are at hand: in its folder, or trained again in ``<results_dir>/rebuilt``; else None.

    Records are kept with the project and weights are not, so a run can be done without them.
    """
    return next((run for run in copies(results_dir, id) if run.weights.exists() and run.result() is not None), None)


def finished(results_dir: str | Path) -> Iterator[Record]:
    """The records of all runs that are done, by id."""
    for folder in sorted((Path(results_dir).expanduser() / "runs").glob("*/")):
        with contextlib.suppress(UserError):  # a damaged record is the business of whoever asks for that run
            if record := Run(results_dir, folder.name).result():
                yield record
