"""svdo-export as a user runs it, on a small run trained here."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, start

from svdo.cli import export as cli
from svdo.export import formats, measure
from svdo.export.c import compiler
from svdo.export.c_source import Source

TRAINED = [*SMALL, "dataset.test_subset=500", "method=sparsevd"]
Export = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has been trained."""
    folder = tmp_path_factory.mktemp("export")
    process = start(folder, *TRAINED, "seed=1")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> str:
    """Its id."""
    return next((folder / "results" / "runs").iterdir()).name


@pytest.fixture
def export(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Export]:
    """svdo-export in that folder: status, output, errors. In this process, with short measurements: a start takes seconds."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "BUDGET", 0.01)
    monkeypatch.setattr(formats, "dense_onnx", lambda network, images: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["svdo-export", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    yield call
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def cells(out: str, label: str) -> list[str]:
    """A row of the table."""
    row = next(line for line in out.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_program_writes_a_file_and_says_what_it_is_like(folder: Path, run: str) -> None:
    process = start(folder, run, "--to", "sparse", "--output", "net.svdo", program="svdo.cli.export")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and err == "", err
    size = (folder / "net.svdo").stat().st_size
    _, written, ratio, one, many, error = cells(out, "sparse")
    dense = cells(out, "dense, torch")
    assert int(written) == size and float(ratio.rstrip("x")) == pytest.approx(int(dense[1]) / size, abs=0.06)
    assert re.fullmatch(r"[\d.]+ \([\d.]+\)", one) and re.fullmatch(r"[\d.]+ \([\d.]+\)", many)
    assert error == dense[5] and 0.0 < float(error) < 90.0
    (folder / "net.svdo").unlink()


@pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
@pytest.mark.parametrize("given", ["id", "folder"])
def test_c_has_the_network_s_error(export: Export, folder: Path, run: str, given: str) -> None:
    status, out, err = export(run if given == "id" else f"results/runs/{run}", "--to", "c")
    assert (status, err) == (0, "")
    assert cells(out, "c")[5] == cells(out, "dense, torch")[5]
    assert '#include "mlp.h"' in (folder / "mlp.c").read_text() and "mlp_predict_batch" in (folder / "mlp.h").read_text()
    made = subprocess.run(["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-c", "mlp.c"], cwd=folder, capture_output=True)
    assert made.returncode == 0, made.stderr


def test_without_a_compiler_c_is_said_not_to_be_checked(export: Export, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    status, out, _ = export(run, "--to", "c", "--output", "My-Net.2.c")
    assert status == 0 and "neither compiled nor checked" in out and "my_net_2_predict" in Path("My-Net.2.h").read_text()
    assert '#include "My-Net.2.h"' in Path("My-Net.2.c").read_text()


def test_other_formats(export: Export, run: str) -> None:
    status, out, err = export(run, "--to", "safetensors", "--half", "--output", "half.safetensors")
    assert (status, err) == (0, "") and float(cells(out, "safetensors, f16")[2].rstrip("x")) > 1.5
    assert abs(float(cells(out, "dense, torch")[5]) - float(cells(out, "safetensors, f16")[5])) < 1.0


def test_onnx_and_int8(export: Export, run: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    status, out, err = export(run, "--to", "onnx", "--compact", "--int8")
    assert (status, err) == (0, "")
    small, dense = cells(out, "onnx, compact, int8"), cells(out, "dense, torch")
    assert abs(float(small[5]) - float(dense[5])) < 3.0 and Path("mlp.onnx").stat().st_size == int(small[1])


def test_a_file_is_not_replaced_unless_that_is_asked_for(export: Export, run: str) -> None:
    Path("kept.svdo").write_text("precious")
    status, _, err = export(run, "--to", "sparse", "--output", "kept.svdo")
    assert status == 2 and "kept.svdo exists" in err and Path("kept.svdo").read_text() == "precious"
    Path("kept.h").write_text("precious")
    status, _, err = export(run, "--to", "c", "--output", "kept.c")
    assert status == 2 and "kept.h exists" in err and not Path("kept.c").exists()
    status, _, err = export(run, "--to", "sparse", "--output", "kept.svdo", "--overwrite")
    assert (status, err) == (0, "") and Path("kept.svdo").read_bytes() != b"precious"


REFUSED = {
    "no finished run": ["no-such-run", "--to", "sparse"],
    "--half is for sparse and safetensors": ["RUN", "--to", "c", "--half"],
    "--int8 is for onnx": ["RUN", "--to", "sparse", "--int8"],
    "invalid choice": ["RUN", "--to", "tflite"],
    "--to": ["RUN"],
    "is no folder": ["RUN", "--to", "c", "--output", "nowhere/net.c"],
    "ends in .c": ["RUN", "--to", "c", "--output", "net.cpp"],
    "is a folder": ["RUN", "--to", "sparse", "--output", "results"],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_mistake_is_one_line_and_writes_nothing(export: Export, folder: Path, run: str, reason: str) -> None:
    before = sorted(folder.rglob("*"))
    status, out, err = export(*(run if word == "RUN" else word for word in REFUSED[reason]))
    assert status == 2 and out == "" and reason in err and err.startswith("svdo: ") and len(err.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def test_a_run_without_weights_is_refused(export: Export, folder: Path, run: str) -> None:
    weights = folder / "results" / "runs" / run / "weights.pt"
    moved = weights.rename(folder / "results" / "elsewhere.pt")
    try:
        status, out, err = export(run, "--to", "c")
    finally:
        moved.rename(weights)
    assert status == 2 and out == "" and "without its weights" in err and len(err.splitlines()) == 1


def test_a_missing_package_is_refused_and_writes_nothing(export: Export, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, out, err = export(run, "--to", "onnx")
    assert status == 2 and out == "" and "pip install 'svdo[onnx]'" in err and not Path("mlp.onnx").exists()


class Wrong:
    """Stands in for compiled code that went wrong."""

    bytes = 0

    def __init__(self, source: Source) -> None:
        self.outputs = source.outputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), self.outputs), np.float32)


def test_a_wrong_result_is_not_written(export: Export, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "compiler", lambda: ["cc"])
    monkeypatch.setattr(formats, "compiled", Wrong)
    status, out, err = export(run, "--to", "c")
    assert status == 2 and out == "" and "computes something else" in err and not Path("mlp.c").exists()


def test_latencies_take_turns_and_repeat_images() -> None:
    calls: list[tuple[str, int]] = []

    def runner(name: str) -> measure.Runner:
        def run(x: np.ndarray) -> np.ndarray:
            calls.append((name, len(x)))
            return x

        return run

    found = measure.latencies({"a": runner("a"), "b": runner("b")}, np.zeros((3, 2), np.float32), batches=(1, 7), blocks=4)
    assert {name: set(times) for name, times in found.items()} == {"a": {1, 7}, "b": {1, 7}}
    assert all(0 < time.best <= time.median for times in found.values() for time in times.values())
    order = [name for name, size in calls if size == 7]
    turns = [name for name, before in zip(order[1:], order, strict=False) if name != before]
    assert len(turns) >= 7
