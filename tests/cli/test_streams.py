"""A program's three streams and its first moments: closed, broken or narrow streams and an early Ctrl-C change no result."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL

from svdo.cli import start

QUICK = [*SMALL, "train.epochs=1", "dataset.subset=200", "dataset.test_subset=100"]


def shell(folder: Path, line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The line as bash would run it, ``svdo-run`` and ``svdo-report`` being this checkout's."""
    programs = "".join(
        f'{name}() {{ {shlex.quote(sys.executable)} -m {module} "$@"; }}\n'
        for name, module in (("svdo-run", "svdo.cli"), ("svdo-report", "svdo.report.cli"))
    )
    return subprocess.run(
        ["bash", "-c", programs + line],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
    )


def records(folder: Path) -> dict[str, set[str]]:
    return {run.name: {path.name for path in run.iterdir()} for run in (folder / "results" / "runs").iterdir()}


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_run_with_closed_streams_leaves_what_it_always_leaves(tmp_path: Path, closed: str) -> None:
    done = shell(tmp_path, f"svdo-run {shlex.join(QUICK)} {closed}")
    assert done.returncode == 0
    (files,) = records(tmp_path).values()
    assert files == {"result.json", "metrics.jsonl", "weights.pt", "lock"}


def test_a_mistake_has_its_status_with_nobody_to_tell(tmp_path: Path) -> None:
    assert shell(tmp_path, "svdo-run nonsense=1 >&- 2>&-").returncode == 2
    assert shell(tmp_path, "svdo-report plan nonsense <&- >&- 2>&-").returncode == 2
    assert not list(tmp_path.iterdir())


def test_a_report_with_closed_streams_writes_its_table(tmp_path: Path) -> None:
    done = shell(tmp_path, "svdo-report render fast <&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "results" / "tables" / "fast.md").stat().st_size


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_terminal_shows_a_table_with_what_it_has(encoding: str) -> None:
    root = Path(__file__).parents[2]
    done = shell(root, "svdo-report check fast", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "reached" in done.stdout


def test_a_reader_that_leaves_is_no_failure_to_speak_of(tmp_path: Path) -> None:
    done = shell(tmp_path, f"set -o pipefail; svdo-run -m {shlex.join(QUICK)} seed=0,1 | head -1")
    assert done.stderr == ""
    assert done.returncode == 141
    done = shell(tmp_path, "svdo-report plan mnist 2>&1 | head -1")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_device_is_named_in_one_line(tmp_path: Path) -> None:
    done = shell(tmp_path, f"svdo-run {shlex.join(QUICK)} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["svdo: input/output: No space left on device"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["svdo_run", "svdo_report"])
def test_a_stop_before_the_imports_are_done_is_one_line(tmp_path: Path, program: str, number: signal.Signals) -> None:
    ready = "import svdo.cli.start as start, sys; sys.stdout.write('.'); sys.stdout.flush()"
    command = [sys.executable, "-c", f"{ready}; sys.argv[1:] = ['plan', 'all']; start.{program}()"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = err.splitlines()
    assert line.startswith("svdo: stopped")


def test_streams_that_are_there_stay_and_lose_no_line_to_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    stdin, stderr = sys.stdin, sys.stderr
    start.mend_streams()
    print("0.1 ± 0.2 of α ≥ 3, \udc80", flush=True)
    assert buffer.getvalue() == b"0.1 ? 0.2 of ? ? 3, ?\n"
    assert (sys.stdin, sys.stderr) == (stdin, stderr)


def test_importing_svdo_imports_no_torch_and_every_name_is_there() -> None:
    code = """
import sys, svdo
assert set(svdo.__all__) <= set(dir(svdo)) and "torch" not in sys.modules
from svdo import UserError
assert "torch" not in sys.modules
from svdo import *
assert convert is svdo.convert and svdo.layers.sampling is sampling
for name in ("nosuch", "_nosuch", "__wrapped__"):
    assert not hasattr(svdo, name)
import svdo.cli.start
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_table_of_names_is_that_of_the_type_checker() -> None:
    import svdo

    listed = [name for names in svdo._HOME.values() for name in names]
    assert sorted(listed) == sorted(svdo.__all__)
