"""Where the numbers of a record come from."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ..config import RuntimeConfig
from .devices import device_name, precision


def provenance(runtime: RuntimeConfig, device: torch.device, started: str) -> dict[str, Any]:
    """What a record says of its origin; ``started`` is a UTC time in ISO format."""
    return {
        "commit": _commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device_name(device),
        "precision": precision(runtime, device),
        "compile": runtime.compile,
        "threads": torch.get_num_threads(),
        "host_cores": os.cpu_count(),
        "started": started,
    }


def _commit() -> str:
    """The checkout's commit, "+" behind it where the package's files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        # An installed copy may lie inside somebody else's checkout: only a tracked file speaks for its commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        paths = [".", str(resources.files("svdo.conf"))]
        changed = subprocess.run([*git, "status", "--porcelain", *paths], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed.strip() else "")
