"""``svdo-export``: a trained run's network in a file that others run, with its bytes, latency and test error."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from tabulate import tabulate

from ..config import expanded
from ..errors import UserError, require
from ..export import formats, measure
from ..export.formats import SUFFIXES, Choice, Exported
from ..export.measure import Latency
from ..export.source import Trained, trained
from ..runs.disk import write_atomically
from ..train import signals
from . import extensions
from .run import exit_status

TO = {
    "sparse": "what is left and the gaps between, exact; svdo.load reads it",
    "safetensors": "all tensors, zeros included",
    "onnx": "for ONNX Runtime and others (needs svdo[onnx])",
    "c": "one C99 file and a header, from the nonzeros alone",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"svdo: {message} (svdo-export --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "svdo-export",
        description="Write a trained run's network to a file, and measure what was written beside the dense network.",
        epilog="formats: " + "; ".join(f"{name}: {text}" for name, text in TO.items()),
    )
    parser.add_argument("run", metavar="RUN", help="a finished run with its weights: its folder, or its id in --results-dir")
    parser.add_argument("--to", required=True, choices=list(TO), help="the format")
    parser.add_argument("--compact", action="store_true", help="first take out the units that have died (c always does)")
    parser.add_argument("--half", action="store_true", help="values as float16 (sparse, safetensors)")
    parser.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on training images (onnx)")
    parser.add_argument("--output", help="the file to write (default: MODEL.SUFFIX in the current folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--results-dir", default="results", help="where a run given by its id lies (default: results)")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module with a model of yours, as for svdo-run",
    )
    parser.add_argument("--data-dir", default=os.environ.get("SVDO_DATA", "~/.cache/svdo"), help="where data sets are kept")
    return parser


def main() -> None:
    """Exit status: 0, or 2 where the user can mend something, 130 or 143 where stopped."""
    with exit_status(), signals():
        arguments = _parser().parse_args()
        choice = Choice(arguments.to, arguments.compact, arguments.half, arguments.int8)
        choice.check()
        extensions.load(arguments.modules)
        if arguments.output is not None:  # before anything takes time
            _refuse(_file(arguments.output), choice, arguments.overwrite)
        results_dir, data_dir = expanded("--results-dir", arguments.results_dir), expanded("--data-dir", arguments.data_dir)
        source = trained(expanded("RUN", arguments.run), results_dir, data_dir)
        output = _file(arguments.output) if arguments.output is not None else Path(f"{source.name}{SUFFIXES[choice.to]}")
        _refuse(output, choice, arguments.overwrite)
        exported = formats.export(source.network, choice, source.test, source.calibration, output.name)
        table = _table(source, exported)
        _write(output, exported)
        print(table)
        for note in exported.notes:
            print(note)
        print(f"written: {', '.join(map(str, _paths(output, exported.others)))}", flush=True)


def _file(name: str) -> Path:
    require(bool(name), "--output is empty; name a file, or leave it out")
    return expanded("--output", name)


def _paths(output: Path, suffixes: Iterable[str]) -> list[Path]:
    return [output, *(output.with_suffix(suffix) for suffix in suffixes)]


def _refuse(output: Path, choice: Choice, overwrite: bool) -> None:
    """What would fail at the end fails at the start."""
    fits = choice.to != "c" or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.c", output.name) is not None
    require(fits, f"--output {output}: a C file's name takes letters, digits, _ . and -, and ends in .c")
    for path in _paths(output, [".h"] if choice.to == "c" else []):
        require(not path.is_dir(), f"{path} is a folder; name a file with --output")
        require(overwrite or not path.exists(), f"{path} exists; name another file with --output, or pass --overwrite")
    folder = output.parent
    require(folder.is_dir(), f"{folder} is no folder; make it, or name another file with --output")
    require(os.access(folder, os.W_OK), f"{folder} cannot be written; name another file with --output")


def _write(output: Path, exported: Exported) -> None:
    """The header before what includes it; each file whole or not at all, and no header alone."""
    files = {output.with_suffix(suffix): data for suffix, data in exported.others.items()} | {output: exported.data}
    new = [path for path in files if not path.exists()]
    try:
        for path, data in files.items():
            write_atomically(path, lambda file, data=data: file.write(data))
    except BaseException as error:
        for path in new:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{output} cannot be written: {error.strerror}; name another file with --output") from None
        raise


def _table(source: Trained, exported: Exported) -> str:
    """The exported network beside the dense one, in torch and, where that is installed, in ONNX Runtime."""
    runners = {"dense, torch": measure.torch_runner(source.network)}
    if (runtime := formats.dense_onnx(source.network, source.test)) is not None:
        runners["dense, ONNX Runtime"] = runtime
    if exported.run is not None:
        runners[exported.label] = exported.run
    times = measure.latencies(runners, source.test)
    errors = {name: measure.error(run, source.test, source.labels) for name, run in runners.items()}
    dense_bytes = formats.dense_bytes(source.network)
    sizes = {"dense, torch": dense_bytes, exported.label: len(exported.data)}
    rows = []
    for name in dict.fromkeys([*runners, exported.label]):
        size, found = sizes.get(name), times.get(name, {})
        row = [name, size, f"{dense_bytes / size:.1f}x" if size and dense_bytes else None]
        row += [_time(found.get(batch)) for batch in measure.BATCHES]
        rows.append([*row, f"{errors[name]:.2f}" if name in errors else None])
    header = ["format", "bytes", "ratio", *(f"batch of {batch}, us" for batch in measure.BATCHES), "test error %"]
    note = "Microseconds of a call on one thread: the fastest of many blocks, and the median in brackets."
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + f"\n{note}"


def _time(latency: Latency | None) -> str | None:
    return None if latency is None else f"{_digits(latency.best)} ({_digits(latency.median)})"


def _digits(microseconds: float) -> str:
    return f"{microseconds:.3g}" if microseconds < 1000 else f"{microseconds:.0f}"


if __name__ == "__main__":
    from .start import svdo_export

    svdo_export()
