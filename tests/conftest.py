"""What every test file shares: a command line run as a user runs it, small and on one thread."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
SMALL = ["model=mlp", "model.width=16", "dataset.subset=2000", "train.epochs=3", "train.batch_size=20"]

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def start(folder: Path, *arguments: str, program: str = "svdo.cli") -> "subprocess.Popen[str]":
    """``svdo-run arguments`` in ``folder``, in the background."""
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def svdo_run(tmp_path: Path) -> Command:
    """``svdo-run`` with these arguments in an empty folder."""

    def run(*arguments: str, program: str = "svdo.cli") -> "subprocess.CompletedProcess[str]":
        process = start(tmp_path, *arguments, program=program)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
