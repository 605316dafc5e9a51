"""Is every file of a store what it was when it was written? Without data sets, and in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runs import REBUILT, Run
from ..runs.record import CHECKSUM, parse, read_json


@dataclass
class Findings:
    """What was looked at, and a line for every file that is not right."""

    runs: int = 0
    right: int = 0
    unfinished: int = 0
    without_checksum: int = 0
    others: int = 0  # measurements, and what figures show
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [*self.wrong, f"{self.runs} runs: {self.right} right"]
        lines[-1] += f", {self.unfinished} of them not finished" if self.unfinished else ""
        lines[-1] += f", {self.without_checksum} without checksum" if self.without_checksum else ""
        lines[-1] += f"; {self.others} other files" if self.others else ""
        lines[-1] += f"; {len(self.wrong)} files are not right" if self.wrong else ""
        return "\n".join(lines)


def verify(results_dir: Path) -> Findings:
    """Look at every run of the store and of the one beside it for runs trained again, and at what reports have kept.

    Raises:
        UserError: where there is no store.
    """
    if not (results_dir / "runs").is_dir():
        raise UserError(f"there is no {results_dir / 'runs'}; name the folder of the results with results_dir=...")
    findings = Findings()
    for store in (results_dir, results_dir / REBUILT):
        for folder in sorted((store / "runs").glob("*/")):
            _look_at_run(Run(store, folder.name), findings)
    for path in sorted((results_dir / "measured").glob("*.json")):
        findings.others += 1
        findings.wrong += _wrong_measurement(path)
    for path in sorted((results_dir / "figures" / "data").glob("*.npz")):
        findings.others += 1
        findings.wrong += _wrong_arrays(path)
    return findings


def _look_at_run(run: Run, findings: Findings) -> None:
    wrong = list(_wrong_files(run))
    findings.runs += 1
    findings.right += not wrong
    findings.wrong += wrong
    try:
        record = run.result()
    except UserError:  # it is among what is wrong
        return
    findings.unfinished += record is None
    findings.without_checksum += record is not None and CHECKSUM not in record


def _wrong_files(run: Run) -> Iterator[str]:
    """A line per file that is not right."""
    try:
        record = run.result()
    except UserError as error:
        yield str(error)
        return  # what is beside it can be held against nothing
    looks: list[Callable[[], object]] = [run.epochs] if record is not None else []
    looks += [partial(run.tensors, path) for path in (run.weights, *run.snapshots().values()) if path.exists()]
    if run.checkpoint.exists() and not run.busy():
        looks.append(run.resume)
    for look in looks:
        try:
            look()
        except UserError as error:
            yield str(error)


def _wrong_measurement(path: Path) -> Iterator[str]:
    try:
        if not isinstance(read_json(path.read_bytes()), dict):
            raise ValueError("it is no measurement")
    except (OSError, ValueError) as error:
        yield f"{path} cannot be read ({error}); restore it, or delete it to measure anew"


def _wrong_arrays(path: Path) -> Iterator[str]:
    """Every array is read, which checks its checksum; the record in it, older files have none, is checked as all are."""
    try:
        with np.load(path) as kept:
            arrays = dict(kept)
        if "record" in arrays:
            parse(str(arrays["record"]), path.stem)
    except Exception as error:  # a damaged archive can fail anywhere in zipfile, zlib or numpy
        yield f"{path} cannot be read ({error}); restore it, or delete it to look at the run anew"
