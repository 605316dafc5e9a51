"""What every test file shares: a command line run as a user runs it, small and on one thread."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
SMALL = ["model=mlp", "model.width=16", "dataset.subset=2000", "train.epochs=3", "train.batch_size=20"]

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def start(folder: Path, *arguments: str, program: str = "svdo.cli") -> "subprocess.Popen[str]":
    """``svdo-run arguments`` in ``folder``, in the background."""
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _program(module: str, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """The program as its script starts it, its output in files."""
    from svdo.cli.start import start as start_program

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for number, stream in ((0, os.devnull), (1, "out"), (2, "err")):
        way = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(stream if number == 0 else folder.with_name(f"{folder.name}.{stream}"), way), number)
    sys.argv = [module, *arguments]
    start_program(module)


def finished(folder: Path, *arguments: str, program: str = "svdo.cli") -> "subprocess.CompletedProcess[str]":
    """A program run to its end, forked from one that has imported torch, since a start from nothing takes seconds."""
    if any(argument.startswith("hydra/launcher=") for argument in arguments):  # its workers outlive a forked parent
        process = start(folder, *arguments, program=program)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["svdo.cli.run", "svdo.report.cli", "svdo.cli.export"])
    module = {"svdo.cli": "svdo.cli.run"}.get(program, program)
    child = context.Process(target=_program, args=(module, [*arguments], folder, dict(os.environ)))
    child.start()
    child.join(240)
    if child.exitcode is None:
        child.kill()
        raise TimeoutError(f"{program} {arguments} runs on after 240 s")
    said = [folder.with_name(f"{folder.name}.{stream}").read_text("utf-8") for stream in ("out", "err")]
    return subprocess.CompletedProcess([program, *arguments], child.exitcode, *said)


@pytest.fixture
def svdo_run(tmp_path: Path) -> Command:
    """``svdo-run`` with these arguments in an empty folder."""

    def run(*arguments: str, program: str = "svdo.cli") -> "subprocess.CompletedProcess[str]":
        return finished(tmp_path, *arguments, program=program)

    return run
