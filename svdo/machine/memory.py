"""How much memory there is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def total(device: torch.device) -> int | None:
    """Bytes of memory that ``device`` has in all, of this machine's those that its container may use; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    known = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        known.append(int(LIMIT.read_text()))
    return min(known, default=None)
