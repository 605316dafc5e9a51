"""The run store, ``<results_dir>/runs/<id>/``: open, lock, keep, finish, query. Every file name in one place.

result.json    the record, written last and atomically: its presence means the run is done
metrics.jsonl  one line per epoch; while the run trains, a copy of what the checkpoint holds
weights.pt     the trained network, tensors only
epoch-N.pt     with runtime.snapshots, the thresholded weights after epoch N
checkpoint.pt  where to resume, with the lines of all epochs so far; gone once the run is done
lock           held while a process trains the run
error.txt      the traceback of the last failure that was no mistake of the user; gone once the run is done

Every tensor file says which run it belongs to, and the record has a checksum of itself and the SHA-256 of the other files
that stay. Records of older versions have neither and are checked for all else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import checkpoint
from .disk import Lock, is_locked, make_folder, write_atomically
from .record import Record, parse, parse_epochs, seal

REBUILT = "rebuilt"


class Run:
    """One run's folder; nothing is created before ``open``."""

    def __init__(self, results_dir: str | Path, id: str) -> None:
        self.id = id
        self.folder = Path(results_dir).expanduser() / "runs" / id
        self.checkpoint = self.folder / "checkpoint.pt"
        self.weights = self.folder / "weights.pt"
        self.error = self.folder / "error.txt"
        self.record = self.folder / "result.json"
        self.metrics = self.folder / "metrics.jsonl"
        self._lock = Lock(self.folder / "lock")

    def snapshot(self, epoch: int) -> Path:
        """Where the thresholded weights after that epoch are kept."""
        return self.folder / f"epoch-{epoch}.pt"

    def snapshots(self) -> dict[int, Path]:
        """The files that ``snapshot`` named and that exist, by epoch in order."""
        numbers = {path.stem.removeprefix("epoch-"): path for path in self.folder.glob("epoch-*.pt")}
        found = {int(number): path for number, path in numbers.items() if number.isdecimal()}
        return dict(sorted(found.items()))

    def result(self) -> Record | None:
        """The record, or None while the run is not done; raises ``UserError`` where the file is damaged."""
        try:
            return parse(self.record.read_bytes(), self.id)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.record} cannot be read ({error}); restore it, or delete it to train anew") from None

    def epochs(self) -> list[Record]:
        """The lines of ``metrics.jsonl``, oldest first; none where there is neither that file nor a record.

        Raises:
            UserError: where a line is damaged, or they are not those of the record.
        """
        record = self.result()
        try:
            content = self.metrics.read_bytes() if record is not None or self.metrics.exists() else b""
            if record is not None:
                self._check_hash(self.metrics, content, record)
            return parse_epochs(content, record)
        except FileNotFoundError:
            if record is not None and not record["epochs"]:
                return []
            raise UserError(f"{self.metrics} is missing; restore it, or delete the folder to train anew") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics} is damaged ({error}); restore it, or delete the folder to train anew") from None

    def tensors(self, path: Path) -> dict[str, Any]:
        """What ``weights.pt`` or a snapshot holds, on the CPU.

        Raises:
            UserError: where the file is damaged, another run's, or not the one that the record was written with.
        """
        files = (self.result() or {}).get("files", {})
        if files and path.name not in files:
            raise UserError(f"{path} is none of the files that the record was written with; delete it")
        return checkpoint.load(path, self.id, files.get(path.name, ""))

    def resume(self) -> dict[str, Any]:
        """What was saved last as ``checkpoint.pt``, its ``lines`` being those of all epochs before.

        A checkpoint of an older version has none, and ``metrics.jsonl`` is where they are.

        Raises:
            UserError: where the checkpoint, a snapshot or what an older checkpoint needs is damaged or another run's.
        """
        state = checkpoint.load(self.checkpoint, self.id)
        for path in self.snapshots().values():
            checkpoint.read(path, self.id)  # now, and not when all is trained and they are to be kept with the record
        if "lines" not in state:
            state["lines"] = self._first_lines(state)
        return state

    @contextmanager
    def open(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Create the folder and hold the run's lock; where another process holds it, say so and wait for it to end.

        Raises:
            UserError: where the folder cannot be written.
        """
        try:
            make_folder(self.folder)
            self._lock.hold(lambda holder: waiting(f"{self.id} is being trained by process {holder}; waiting for it to end"))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}; name another folder with results_dir=..."
            ) from None
        try:
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            yield
        finally:
            self._lock.release()

    def busy(self) -> bool:
        """Whether some process is training it now."""
        with contextlib.suppress(OSError), open(self._lock.path, "rb") as lock:
            return is_locked(lock.fileno())
        return False

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Write a tensor file of this run; raises ``UserError`` where the folder has become another process's."""
        self._lock.check()
        checkpoint.save(path, state, self.id)

    def write_epochs(self, lines: Sequence[Record]) -> None:
        """Make ``metrics.jsonl`` these lines, whatever it was: the checkpoint knows better."""
        self._lock.check()
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_atomically(self.metrics, lambda file: file.write(text.encode()))

    def append(self, line: Record) -> None:
        """Add an epoch's line."""
        self._lock.check()
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, record: Record, lines: Sequence[Record]) -> Record:
        """Write the record with the hashes of what stays beside it, then drop what only resuming needs.

        Raises:
            UserError: where the record, or a file that stays beside it, would be refused when it is read.
        """
        contents = {path.name: checkpoint.read(path, self.id) for path in (self.weights, *self.snapshots().values())}
        if lines:
            self.write_epochs(lines)
            contents[self.metrics.name] = self.metrics.read_bytes()
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        try:
            sealed = seal({**record, "files": files})
        except ValueError as error:
            raise UserError(f"{self.record} is not written: {error}") from None
        text = json.dumps(sealed, indent=1, allow_nan=False) + "\n"
        self._lock.check()
        write_atomically(self.record, lambda file: file.write(text.encode()))
        for path in (self.checkpoint, self.error):
            path.unlink(missing_ok=True)
        return sealed

    def _check_hash(self, path: Path, content: bytes, record: Record) -> None:
        known = record.get("files", {}).get(path.name)
        if known is not None and hashlib.sha256(content).hexdigest() != known:
            raise ValueError("it is not the file that the record was written with")

    def _first_lines(self, state: dict[str, Any]) -> list[Record]:
        """The epochs before an older checkpoint: what was written after it is trained, and said, again."""
        try:
            epoch = state["progress"]["epoch"]
            whole = self.metrics.read_bytes().splitlines()[:epoch] if self.metrics.exists() else []
            lines = parse_epochs(b"\n".join(whole), None)
            if len(lines) < epoch:
                raise ValueError(f"it lacks epochs before {epoch + 1}")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.metrics} is damaged ({error}); restore it, or delete the folder to train anew") from None
        return lines


def copies(results_dir: str | Path, id: str) -> Iterator[Run]:
    """The run in its own place, and where it is trained again for what is not kept with its record."""
    yield from (Run(store, id) for store in (results_dir, Path(results_dir) / REBUILT))


def with_weights(results_dir: str | Path, id: str) -> Run | None:
    """The run where its weights are at hand: in its folder, or trained again in ``<results_dir>/rebuilt``; else None.

    Records are kept with the project and weights are not, so a run can be done without them.
    """
    return next((run for run in copies(results_dir, id) if run.weights.exists() and run.result() is not None), None)
