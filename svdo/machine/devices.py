"""What a run is computed on: the device, its name, and where the numbers of a record come from."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from ..config import RuntimeConfig
from ..errors import UserError
from ..runs.disk import try_lock

F = TypeVar("F", bound=Callable[..., Any])
CPU_FLAGS = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def device(runtime: RuntimeConfig) -> torch.device:
    """The device that ``runtime`` names, auto being a GPU of this process's own; raises ``UserError`` where there is none."""
    if runtime.device == "auto":
        return _gpu()[0] if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(runtime.device)
        if chosen.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"runtime.device={runtime.device} cannot be used: {str(error).splitlines()[0]}") from None
    return chosen


def device_type(runtime: RuntimeConfig) -> str:
    """cpu or cuda, without taking a GPU for this process; raises ``UserError`` as ``device`` does."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if runtime.device == "auto" else device(runtime).type


def precision(runtime: RuntimeConfig, device: torch.device) -> str:
    """``runtime.precision``, auto being bf16 where ``device`` has instructions for it, and fp32 where that is faster by far."""
    return ("bf16" if has_bf16(device) else "fp32") if runtime.precision == "auto" else runtime.precision


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 itself; False where only Linux would know."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = CPU_FLAGS.read_text().split()
    except FileNotFoundError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


@functools.cache
def _gpu() -> tuple[torch.device, IO[str] | None]:
    """The first GPU that no other svdo process of this user has, and the lock that keeps it; where all are taken, the first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace("/", "_")
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows has a temporary folder for each
    for number in range(torch.cuda.device_count()):
        path = Path(tempfile.gettempdir()) / f"svdo-{user}-gpu-{number}-of-{visible}.lock"
        lock = open(path, "w")  # noqa: SIM115 - held for as long as the process lives
        if try_lock(lock.fileno()):
            return torch.device("cuda", number), lock
        lock.close()
    return torch.device("cuda", 0), None


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees: handing megabytes back and asking anew costs a CPU step up to a fifth."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def import_compiler() -> None:
    """What torch's optimizers would import in any case, without the cache folder that it makes in the temporary one then."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    given = os.environ.get(variable)
    os.environ[variable] = given or tempfile.gettempdir()  # which is there already
    importlib.import_module("torch._dynamo")
    if given is None:
        del os.environ[variable]


def compute_exactly() -> None:
    """On CUDA: convolutions in float32 unless autocast says otherwise, by the same algorithm in every process."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def prepare_process(threads: int) -> None:
    """Set torch up for training in this process, on so many threads (0: torch's own choice)."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    compute_exactly()
    torch.set_flush_denormal(True)  # removed weights shrink to denormals, which CPUs multiply many times slower


def compiled(function: F, device: torch.device) -> F:
    """``function`` under torch.compile; on CUDA its kernels are captured once and replayed."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    if device.type == "cpu" and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise UserError("runtime.compile=true needs a C++ compiler on a CPU, g++ or clang++; install one, or leave it out")
    return cast(F, torch.compile(function, dynamic=False, mode=mode))


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
