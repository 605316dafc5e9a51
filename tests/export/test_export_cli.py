"""svdo-export as a user runs it, on a small run trained here."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from svdo.cli import export as cli
from svdo.errors import UserError
from svdo.export import formats, measure
from svdo.export.c import compiler

TRAINED = ["dataset.test_subset=500", "dataset.subset=2000", "train.epochs=1", "train.batch_size=20"]

# A program that imports svdo once and then is svdo-export, or svdo-run, many times over: a start takes seconds, a fork none.
SERVER = """
import json, os, sys
from pathlib import Path
import svdo.cli.export
from svdo.cli import start
from svdo.export import measure

measure.BLOCK_SECONDS, measure.BUDGET, measure.FEWEST = 1e-4, 0.01, 3
for number, (program, arguments, environment, hidden) in enumerate(json.load(sys.stdin)):
    if os.fork() == 0:
        ids = {path.name.partition("-")[0].upper(): path.name for path in Path("results", "runs").glob("*")}
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ.update(environment)
        sys.modules.update(dict.fromkeys(hidden))  # what import then takes for absent
        sys.argv = [program, *("/".join(ids.get(part, part) for part in word.split("/")) for word in arguments)]
        try:
            getattr(start, program)()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        os._exit(status)  # Python takes most of a second to clear up after torch
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

GATED = """
from dataclasses import dataclass
from torch import nn
from svdo.extend import Model, model

@model
@dataclass
class Gated(Model):
    name: str = "gated"

    def build(self, data):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Sigmoid(), nn.Linear(4, data.classes))
"""


@dataclass
class Asked:
    """A command line; what is to be in its environment and what is not to be installed; then what came of it.

    In its words, MLP and GATED stand for the id of the run of that model.
    """

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    program: str = "svdo_export"
    status: int = -1
    out: str = ""
    err: str = ""


def ask(folder: Path, *asked: Asked) -> None:
    """Run the command lines, one after the other."""
    lines = [(each.program, each.arguments, each.environment, each.hidden) for each in asked]
    made = subprocess.run(
        [sys.executable, "-c", SERVER], input=json.dumps(lines), cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert made.returncode == 0, made.stderr
    for number, (each, status) in enumerate(zip(asked, made.stdout.split(), strict=True)):
        out, err = (folder / f"{number}.{name}" for name in ("out", "err"))
        each.status, each.out, each.err = int(status), out.read_text(), err.read_text()
        out.unlink()
        err.unlink()


NO_ONNX = ["onnx"]
FILES = {
    "sparse": ("net.svdo", Asked(["MLP", "--to", "sparse", "--output", "net.svdo"], hidden=NO_ONNX)),
    "safetensors, f16": (
        "half.safetensors",
        Asked(["results/runs/MLP", "--to", "safetensors", "--half", "--output", "half.safetensors"], hidden=NO_ONNX),
    ),
    "c": ("mlp.c", Asked(["MLP", "--to", "c"], hidden=NO_ONNX)),
}
BARE = Asked(
    ["MLP", "--to", "c", "--output", "My-Net.2.c"],
    {"CC": "no-such-compiler"},
    [*NO_ONNX, "safetensors", "safetensors.torch"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs have been trained, one of a model of the user's own, and one exported in several formats."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "mine.py").write_text(GATED)
    trainings = [
        Asked([*TRAINED, "model=mlp", "model.width=16", "method=sparsevd"], program="svdo_run"),
        Asked([*TRAINED, "import=mine", "model=gated", "method=none"], program="svdo_run"),
    ]
    ask(folder, *trainings, *(each for _, each in FILES.values()), BARE)
    for training in trainings:
        assert training.status == 0, training.err
    return folder


def cells(out: str, label: str) -> list[str]:
    """A row of the table."""
    row = next(line for line in out.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def check(folder: Path, label: str, file: str, each: Asked, rounded: float = 0.0) -> None:
    """The file has the bytes that are said, and the error is the dense network's."""
    assert (each.status, each.err) == (0, ""), each.err
    dense, made = cells(each.out, "dense, torch"), cells(each.out, label)
    assert int(made[1]) == (folder / file).stat().st_size
    assert float(made[2].rstrip("x")) == pytest.approx(int(dense[1]) / int(made[1]), abs=0.06)
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+\)", cell) for cell in made[3:5])
    assert abs(float(made[5]) - float(dense[5])) <= rounded and 0.0 < float(made[5]) < 90.0


@pytest.mark.parametrize("label", FILES)
def test_a_format_is_written_and_measured(folder: Path, label: str) -> None:
    if label == "c" and compiler() is None:
        pytest.skip("needs a C compiler")
    check(folder, label, *FILES[label], rounded=1.0 if "f16" in label else 0.0)
    if label == "c":
        assert '#include "mlp.h"' in (folder / "mlp.c").read_text() and "mlp_predict_batch" in (folder / "mlp.h").read_text()


def test_c_needs_neither_a_compiler_nor_another_package(folder: Path) -> None:
    assert (BARE.status, BARE.err) == (0, "") and "neither compiled nor checked" in BARE.out
    assert "my_net_2_predict" in (folder / "My-Net.2.h").read_text()
    assert '#include "My-Net.2.h"' in (folder / "My-Net.2.c").read_text()


@pytest.mark.slow
def test_onnx_is_written_and_measured(folder: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    small, exact = (
        Asked(["MLP", "--to", "onnx", "--compact", "--int8"]),
        Asked(["MLP", "--to", "onnx", "--output", "mlp2.onnx"]),
    )
    ask(folder, small, exact)
    check(folder, "onnx, compact, int8", "mlp.onnx", small, rounded=3.0)
    check(folder, "onnx", "mlp2.onnx", exact)
    assert cells(exact.out, "dense, ONNX Runtime")[5] == cells(exact.out, "onnx")[5]


REFUSED = {
    "no finished run": Asked(["no-such-run", "--to", "sparse"]),
    "does not exist": Asked(["no/such/run", "--to", "sparse"]),
    "is a file; name a run": Asked(["mine.py", "--to", "sparse"]),
    "no run's folder": Asked(["results", "--to", "sparse"]),
    "kept without its weights": Asked(["elsewhere/runs/MLP", "--to", "c"]),
    "layer 2 is a Sigmoid, which C cannot express": Asked(["GATED", "--to", "c", "--import", "mine"]),
    "model=gated is not a choice": Asked(["GATED", "--to", "sparse"]),
    "import=theirs failed": Asked(["GATED", "--to", "sparse", "--import", "theirs"]),
    "--half is for sparse and safetensors": Asked(["MLP", "--to", "c", "--half"]),
    "--int8 is for onnx": Asked(["MLP", "--to", "sparse", "--int8"]),
    "invalid choice": Asked(["MLP", "--to", "tflite"]),
    "--to": Asked(["MLP"]),
    "nowhere is no folder": Asked(["MLP", "--to", "c", "--output", "nowhere/net.c"]),
    "mine.py is no folder": Asked(["MLP", "--to", "c", "--output", "mine.py/net.c"]),
    "/proc/net.svdo cannot be written": Asked(["MLP", "--to", "sparse", "--output", "/proc/net.svdo"], hidden=NO_ONNX),
    "ends in .c": Asked(["MLP", "--to", "c", "--output", "net.cpp"]),
    "results is a folder": Asked(["MLP", "--to", "sparse", "--output", "results"]),
    "--output is empty": Asked(["MLP", "--to", "sparse", "--output", ""]),
    "there is no such user": Asked(["MLP", "--to", "sparse", "--output", "~nobody-of-this-name/net.svdo"]),
    "kept.svdo exists": Asked(["MLP", "--to", "sparse", "--output", "kept.svdo"]),
    "kept.h exists": Asked(["MLP", "--to", "c", "--output", "kept.c"]),
    "weights.pt exists": Asked(["MLP", "--to", "sparse", "--output", "results/runs/MLP/weights.pt"]),
    "onnx is not installed; install it with: pip install 'svdo[onnx]'": Asked(["MLP", "--to", "onnx"], hidden=["onnx"]),
    "safetensors is not installed": Asked(["MLP", "--to", "sparse"], hidden=["safetensors", "safetensors.torch"]),
    "false refuses the C source": Asked(["MLP", "--to", "c", "--output", "new.c"], {"CC": "false"}),
}


def test_a_mistake_is_one_line_and_status_2_and_writes_nothing(folder: Path) -> None:
    for name in ("kept.svdo", "kept.h"):
        (folder / name).write_text("precious")
    run = next((folder / "results" / "runs").glob("mlp-*"))
    bare = folder / "elsewhere" / "runs" / run.name
    bare.mkdir(parents=True)
    (bare / "result.json").write_bytes((run / "result.json").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    replaced = Asked(["MLP", "--to", "sparse", "--output", "kept.svdo", "--overwrite"], hidden=NO_ONNX)
    ask(folder, *REFUSED.values(), replaced)
    assert replaced.status == 0 and (folder / "kept.svdo").read_bytes() != b"precious"
    before.pop(folder / "kept.svdo")
    after = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
    assert {
        path: time for path, time in after.items() if path != folder / "kept.svdo" and "__pycache__" not in path.parts
    } == before
    for reason, each in REFUSED.items():
        assert (each.status, each.out) == (2, ""), (reason, each.err)
        assert reason in each.err and each.err.startswith("svdo: ") and len(each.err.splitlines()) == 1, (reason, each.err)


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code that gives something else than the network, by a little and as no number."""
    network = nn.Sequential(nn.Linear(3, 2)).eval()
    images, right = np.ones((4, 3), np.float32), measure.torch_runner(network)
    for wrong in (lambda x: right(x) * np.float32(1.001), lambda x: right(x) * np.float32("nan")):
        monkeypatch.setattr(formats, "compiler", lambda: ["cc"])
        monkeypatch.setattr(formats, "compiled", lambda source, wrong=wrong: Wrong(wrong))
        with pytest.raises(UserError, match="the c file computes something else"):
            formats.export(network, formats.Choice("c"), images, images, "net.c")


class Wrong:
    """Stands in for compiled code."""

    bytes = 0

    def __init__(self, run: measure.Runner) -> None:
        self.run = run

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.run(x)


def test_no_header_stays_behind_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: Callable[..., None]) -> None:
        if path.suffix == ".c":
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(b"")

    monkeypatch.setattr(cli, "write_atomically", full)
    exported = formats.Exported("c", b"", None, {".h": b""})
    with pytest.raises(UserError, match=r"net\.c cannot be written: No space left on device"):
        cli._write(tmp_path / "net.c", exported)
    assert list(tmp_path.iterdir()) == []


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
