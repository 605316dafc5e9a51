"""``--to c``: one C99 file without dependencies, written from the nonzero weights, compiled and checked."""

from __future__ import annotations

import ctypes
import keyword
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ..errors import UserError
from .c_layers import stages
from .c_source import Source, Writer

FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
Array = npt.NDArray[np.float32]


def c_source(network: nn.Module, example: Tensor, name: str = "network", header: str | None = None) -> Source:
    """The C source of a plain network in evaluation mode, a chain of layers, and its header.

    Args:
        network: of Linear, Conv2d, BatchNorm, ReLU, MaxPool2d, AvgPool2d, Flatten, such as ``svdo.plain`` gives.
        example: inputs (n, features) or (n, channels, height, width), for their shape.
        name: of the functions NAME_predict and NAME_predict_batch.
        header: the name of the header's file; NAME.h where it is not given.

    Raises:
        UserError: naming the layer that C cannot express or that is not finite; or where ``name`` cannot be one in C.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name} is no name for C functions; take small letters, digits and _")
    return Writer(name, header or f"{name}.h", stages(network, tuple(example.shape[1:]))).write()


def compiler() -> list[str] | None:
    """The C compiler's command, $CC or cc, where there is one."""
    command = shlex.split(os.environ.get("CC", "cc"))
    return command if command and shutil.which(command[0]) else None


def build(sources: Sequence[Source], library: Path, flags: Sequence[str] = FLAGS) -> None:
    """Compile C sources into one shared library.

    Raises:
        UserError: where there is no compiler, or it refuses.
    """
    command = compiler()
    if command is None:
        raise UserError("there is no C compiler; install one, or name it in CC")
    with tempfile.TemporaryDirectory(prefix="svdo-c-") as folder:
        files = []
        for source in sources:
            files.append(Path(folder, f"{source.name}.c"))
            files[-1].write_text(source.text)
            Path(folder, source.header_name).write_text(source.header)
        made = subprocess.run([*command, *flags, *map(str, files), "-o", str(library)], capture_output=True, text=True)
    if made.returncode:
        said = (made.stderr.splitlines() or ["no message"])[0]
        raise UserError(f"{command[0]} refuses the C source: {said}")


def compiled(source: Source, flags: Sequence[str] = FLAGS) -> Compiled:
    """A C source compiled and loaded; raises ``UserError`` as ``build`` does."""
    with tempfile.TemporaryDirectory(prefix="svdo-c-") as folder:
        library = Path(folder, "network.so")
        build([source], library, flags)
        return Compiled(source, library)


class Compiled:
    """A compiled C source as a Python callable: (n, ...) float32 -> (n, outputs)."""

    def __init__(self, source: Source, library: Path) -> None:
        """Load it from the shared library that ``build`` made."""
        self.bytes = library.stat().st_size
        loaded = ctypes.CDLL(str(library))
        self._one = getattr(loaded, f"{source.name}_predict")
        self._many = getattr(loaded, f"{source.name}_predict_batch")
        self._one.argtypes, self._one.restype = (ctypes.c_void_p, ctypes.c_void_p), None
        self._many.argtypes, self._many.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int), None
        self._inputs, self._outputs = source.inputs, source.outputs

    def __call__(self, x: Array) -> Array:
        """Logits (n, outputs) of images (n, ...)."""
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            x = np.ascontiguousarray(x, np.float32)
        n = len(x)
        if x.size != n * self._inputs:
            raise UserError(f"an image has {self._inputs} numbers, not {x.size // max(n, 1)}")
        y: Array = np.empty((n, self._outputs), np.float32)
        if n == 1:
            self._one(_address(x), _address(y))
        elif n:
            self._many(_address(x), _address(y), n)
        return y


def _address(array: Array) -> int:
    """Where its numbers lie; ``array.ctypes`` takes longer to say so than a small network to answer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data)) if array.flags.writeable else array.ctypes.data
