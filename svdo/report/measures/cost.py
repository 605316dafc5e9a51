"""Time and memory of training under each estimator."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import machine, train
from ...cli.compose import compose
from ...conversion import kl as kl_of
from ...objective import objective
from ...runs import Run
from . import estimators
from .base import Effort, Networks, measure

COSTED = (
    "dataset=mnist",
    "model=mlp",
    "model.width=1024",
    "method=vd_b",
    "runtime.device=cpu",
)  # what training costs is measured on


@measure("cost")
def cost(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Seconds per epoch and the memory of a step, in MiB, of training under each estimator."""
    config = replace(compose(COSTED), data_dir=str(data_dir))
    with tempfile.TemporaryDirectory() as nowhere:
        training = train.Training(config, Run(nowhere, config.id), train.Stop())
    steps = {
        estimator: effort.separate_steps if estimator == "separate" else effort.steps for estimator in estimators.ESTIMATORS
    }
    times: dict[str, list[float]] = {estimator: [] for estimator in estimators.ESTIMATORS}
    others = machine.watch_others()
    batches = training.data.train.batches(config.train.batch_size, 0, 0)
    for number, (x, y) in zip(range(effort.steps + 1), batches, strict=False):
        for estimator in estimators.ESTIMATORS:  # in turn, so that a slower minute of the machine is everyone's
            if number <= steps[estimator]:
                times[estimator].append(_step(training, estimator, x, y))
    cores = others()
    found = {}
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler otherwise reports its own doings to the terminal
    for estimator in estimators.ESTIMATORS:
        training.model.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
            _step(training, estimator, x, y)
        epoch = statistics.median(times[estimator][1:]) * (len(training.data.train) // config.train.batch_size)
        found[estimator] = {"epoch_seconds": epoch, "memory": _peak(watched) / 2**20, "steps": steps[estimator]}
    for record in found.values():
        record["times_local"] = record["epoch_seconds"] / found["local"]["epoch_seconds"]
        if cores is not None:
            record["other_cores"] = cores
    return {estimator: [record] for estimator, record in found.items()}


def _step(training: train.Training, estimator: str, x: Tensor, y: Tensor) -> float:
    """One step; its seconds."""
    clock = time.perf_counter()
    training.model.zero_grad()
    parts = len(x) // estimators.EXAMPLES_AT_ONCE if estimator == "separate" else 1
    with estimators.drawn(training.model, estimator):
        # Once a step, however many parts: all of it goes with the first. Without noise there is none.
        divergence = torch.zeros(()) if estimator == "none" else kl_of(training.model)
        for images, labels in zip(x.flatten(1).chunk(parts), y.chunk(parts), strict=True):
            likelihood = training.task.loss(training.model(images), labels)
            (objective(likelihood, divergence, len(training.data.train), parts) / parts).backward()
            divergence = torch.zeros(())
    for optimizer in training.state.optimizers:
        optimizer.step()
    return time.perf_counter() - clock


def _peak(watched: torch.profiler.profile) -> int:
    """The most bytes that the tensors made meanwhile held at one time."""
    results: Any = watched.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return int(max(itertools.accumulate(change for _, change in changes)))
