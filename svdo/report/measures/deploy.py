"""What trained networks take once they are exported: bytes, time of an answer, test error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import machine
from ...conversion import plain
from ...data import Data
from ...export import formats, measure
from ...export.formats import Choice, Exported
from ...export.source import CALIBRATION, examples
from .base import Effort, Networks, timed
from .base import measure as register

EVERY = {
    "dense": Choice("safetensors"),
    "onnx": Choice("onnx"),
    "compact": Choice("onnx", compact=True),
    "int8": Choice("onnx", compact=True, int8=True),
    "sparse": Choice("sparse", compact=True),
    "half": Choice("sparse", compact=True, half=True),
    "c": Choice("c"),
}
COMPARED = ("onnx", "compact", "half", "c")  # of networks that other methods trained
FULLY = "sparsevd"  # those whose name ends so are exported in every way


@register("deploy")
def deploy(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Of each network in each format: bytes, microseconds of a call on one thread, test error.

    All formats of a network take turns, block by block, so that what else the machine does meets all of them; ``times`` are
    how many times as fast as ONNX Runtime with the dense network each is, fastest block against fastest.
    """
    found: dict[str, Any] = {}
    for (name,) in timed([(name,) for name in networks]):
        for model, data in networks[name]:
            for key, record in _network(name, model, data, effort).items():
                found.setdefault(f"{name} {key}", []).append(record)
    return found


def _network(name: str, model: nn.Module, data: Data, effort: Effort) -> dict[str, dict[str, Any]]:
    network = plain(model).eval().to(memory_format=torch.contiguous_format)
    images, labels = examples(data.test)
    calibration, _ = examples(data.train, CALIBRATION)
    chosen = list(EVERY) if name.endswith(FULLY) else list(COMPARED)
    made = {key: formats.export(network, EVERY[key], images, calibration, "network.c") for key in chosen}
    runners = {key: each.run for key, each in made.items() if each.run is not None}
    if name.endswith(FULLY):
        runners["converted"] = measure.torch_runner(model.eval())
    others = machine.watch_others()
    times = measure.latencies(runners, images, blocks=effort.blocks, budget=effort.seconds)
    cores = others()
    dense = formats.dense_bytes(network)
    found = {}
    for key, run in runners.items():
        record: dict[str, Any] = {"error": measure.error(run, images, labels)}
        record |= _bytes(made[key], dense) if key in made else {}
        for word, size in zip(("one", "many"), measure.BATCHES, strict=True):
            time, base = times[key][size], times["onnx"][size]
            record[word] = {"best": time.best, "median": time.median, "times": base.best / time.best}
        found[key] = record | ({} if cores is None else {"other_cores": cores})
    return found


def _bytes(made: Exported, dense: int | None) -> dict[str, Any]:
    """Of a C file what the compiler makes of it counts as well."""
    size = len(made.data)
    found = {"bytes": size} | ({"compiled": compiled} if (compiled := getattr(made.run, "bytes", None)) is not None else {})
    return found if dense is None else found | {"ratio": dense / size}
