"""``--to onnx``: through torch's exporter, checked and run by ONNX Runtime; int8 by its static quantisation."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import UserError

Array = npt.NDArray[np.float32]
CALIBRATION_BATCH = 100
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise UserError(f"{missing} is not installed; install it with: pip install 'svdo[onnx]'") from None


def check_packages() -> None:
    """Raise ``UserError`` where a package is missing that export, check or quantisation takes."""
    for name in PACKAGES:
        _needed(name)


def onnx_model(network: nn.Module, example: Tensor) -> bytes:
    """A plain network in evaluation mode as an ONNX model whose batch may have any size.

    Args:
        network: takes one tensor and gives one.
        example: an input of it, (n, ...), for its shape.

    Raises:
        UserError: where a package is missing, or torch cannot export the network.
    """
    onnx = _needed("onnx")
    _needed("onnxscript")
    pair = example[:1].expand(2, *example.shape[1:]).contiguous()  # torch takes a batch of 1 for a constant
    with tempfile.TemporaryDirectory(prefix="svdo-onnx-") as folder:
        path = Path(folder, "network.onnx")
        try:
            with _quiet():
                torch.onnx.export(
                    network,
                    (pair,),
                    str(path),
                    input_names=["x"],
                    output_names=["y"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    dynamo=True,
                    external_data=False,
                )
        except Exception as error:  # an exporter may fail with anything
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"torch cannot export the network to ONNX: {reason}") from None
        model = onnx.load(str(path))
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]  # where in whose source files each step was written
        if hasattr(part, "doc_string"):
            part.ClearField("doc_string")
    del model.graph.metadata_props[:]
    result: bytes = model.SerializeToString()
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress and warnings: what matters is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class OnnxRunner:
    """An ONNX model in ONNX Runtime on the CPU: (n, ...) float32 -> (n, outputs)."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        """Load it; raises ``UserError`` where ONNX Runtime is not installed."""
        runtime = _needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: Array) -> Array:
        """The network's outputs."""
        result: Array = self._session.run(None, {self._input: x})[0]
        return result


def int8_model(model: bytes, images: Array) -> bytes:
    """An ONNX model in 8-bit integers, by ONNX Runtime's static quantisation, weights by output channel.

    Args:
        model: of ``onnx_model``.
        images: a few hundred inputs (n, ...) from training, to see how large activations become.

    Raises:
        UserError: where a package is missing.
    """
    quantization = _needed("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="svdo-onnx-") as folder, _quiet():
        source, prepared, target = (str(Path(folder, f"{name}.onnx")) for name in ("source", "prepared", "int8"))
        Path(source).write_bytes(model)
        importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process(
            source, prepared, skip_symbolic_shape=True
        )
        quantization.quantize_static(
            prepared,
            target,
            _batches(quantization.CalibrationDataReader, images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # without VNNI, sums of two products of 8 bits overflow 16
        )
        return Path(target).read_bytes()


def _batches(reader: type[Any], images: Array) -> Any:
    """What ``quantize_static`` reads from: an object of ONNX Runtime's class, which is imported where it is used."""
    batches = iter(np.array_split(images, max(1, len(images) // CALIBRATION_BATCH)))

    class Batches(reader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            batch = next(batches, None)
            return None if batch is None else {"x": batch}

    return Batches()
