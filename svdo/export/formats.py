"""The formats of ``svdo-export``: from a plain network to files in memory, and to what runs them."""

from __future__ import annotations

import copy
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..errors import UserError, require
from . import container, files, measure, onnx, sparse
from .c import c_source, compiled, compiler
from .compact import compact
from .measure import Runner

Array = npt.NDArray[np.float32]
SUFFIXES = {"sparse": ".svdo", "safetensors": ".safetensors", "onnx": ".onnx", "c": ".c"}
EXACT = 1e-5  # of the largest output: what float32 sums in another order may differ by
ROUNDED = 1e-4


@dataclass
class Exported:
    """A network in a format: the file's bytes, others by suffix, what runs it (if anything can), and what is to be said."""

    label: str
    data: bytes
    run: Runner | None
    others: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """What was asked for."""

    to: str
    compact: bool = False
    half: bool = False
    int8: bool = False

    def check(self) -> None:
        """Raise ``UserError`` on what does not go together, or where a package is missing."""
        require(
            not self.half or self.to in ("sparse", "safetensors"), f"--half is for sparse and safetensors, not for {self.to}"
        )
        require(not self.int8 or self.to == "onnx", f"--int8 is for onnx, not for {self.to}")
        if self.to == "onnx":
            onnx.check_packages()
        elif self.to != "c":
            container.check_package()


def export(network: nn.Module, choice: Choice, images: Array, calibration: Array, file: str) -> Exported:
    """A plain network in evaluation mode in the chosen format, checked where a check is exact.

    Args:
        network: it is not changed.
        choice: the format.
        images: real inputs (n, channels, height, width), for its shape and for the check.
        calibration: training images for int8.
        file: the name of the C file; its functions are called after it.

    Raises:
        UserError: where the network cannot be expressed, a package is missing, or what was made computes something else.
    """
    choice.check()
    reference, notes = measure.torch_runner(network), []
    if choice.compact or choice.to == "c":
        smaller = compact(network, torch.from_numpy(images[:2]))
        network = smaller.module.eval()
        notes += [f"compact: {smaller.before.parameters} parameters, now {smaller.after.parameters}", *smaller.notes]
    label = choice.to + ", compact" * (choice.compact and choice.to != "c") + ", f16" * choice.half + ", int8" * choice.int8
    if choice.to == "c":
        made = _c(network, images, file)
    elif choice.to == "onnx":
        made = _onnx(network, choice, images, calibration)
    else:
        made = _tensors(network, choice)
    made.label, made.notes = label, notes + made.notes
    if made.run is not None and not choice.half and not choice.int8:
        tolerance = ROUNDED if choice.to == "onnx" else EXACT
        measure.check(made.run, reference, images[:500], tolerance, f"the {choice.to} file")
    return made


def _c(network: nn.Module, images: Array, file: str) -> Exported:
    stem = file.removesuffix(".c")
    name = re.sub("[^a-z0-9_]", "_", stem.lower())
    source = c_source(network, torch.from_numpy(images[:1]), f"net_{name}" if name[:1].isdigit() else name, f"{stem}.h")
    run = compiled(source) if compiler() else None
    sizes = f"tables {source.table_bytes} bytes, buffers {source.buffer_bytes} bytes, {source.batch_bytes} more for batches"
    notes = [
        sizes,
        f"compiled: {run.bytes} bytes" if run else "no C compiler here, so the file was neither compiled nor checked",
    ]
    return Exported("", source.text.encode(), run, {".h": source.header.encode()}, notes)


def _onnx(network: nn.Module, choice: Choice, images: Array, calibration: Array) -> Exported:
    model = onnx.onnx_model(network, torch.from_numpy(images[:2]))
    if choice.int8:
        model = onnx.int8_model(model, calibration)
    return Exported("", model, onnx.OnnxRunner(model))


def _tensors(network: nn.Module, choice: Choice) -> Exported:
    with tempfile.TemporaryDirectory(prefix="svdo-export-") as folder:
        path = Path(folder, "network")
        if choice.to == "sparse":
            sparse.save(network, path, half=choice.half)
        else:
            files.save(copy.deepcopy(network).half() if choice.half else network, path)
        loaded = files.load(path).float()
        return Exported("", path.read_bytes(), measure.torch_runner(loaded))


def dense_bytes(network: nn.Module) -> int | None:
    """Of the plain network in a safetensors file, where that package is installed: what bytes are compared with."""
    try:
        return len(_tensors(network, Choice("safetensors")).data)
    except UserError:
        return None


def dense_onnx(network: nn.Module, images: Array) -> Runner | None:
    """The plain network in ONNX Runtime, where that is installed: what latencies are compared with."""
    try:
        return onnx.OnnxRunner(onnx.onnx_model(network, torch.from_numpy(images[:2])))
    except UserError:
        return None
