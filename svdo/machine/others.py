"""What else this machine is busy with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def watch_others() -> Callable[[], float | None]:
    """Call the result for how many cores other processes have kept busy since, on average; None where only Linux would know."""
    before, clock = _others_seconds(), time.perf_counter()

    def cores() -> float | None:
        now = _others_seconds()
        return None if before is None or now is None else max((now - before) / (time.perf_counter() - clock), 0.0)

    return cores


def _others_seconds() -> float | None:
    """Processor seconds that this machine has spent on anything but this process and its finished children."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except FileNotFoundError:
        return None
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
