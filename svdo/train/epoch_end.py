"""What happens when an epoch is over: the network is evaluated, noted, shown and kept."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from ..batch_norm import reestimate_batch_norm
from ..conversion import kl
from ..counts import compression, evaluation_weights, sparsity
from ..runs import Record
from . import console
from .failure import not_finite
from .job import Job
from .stopping import Interrupted, Stop


class EpochEnd:
    """``held_out`` is what epochs are judged on: validation data where some are held out, else the test set."""

    def __init__(self, job: Job, stop: Stop) -> None:
        self.job, self.stop = job, stop
        data = job.data
        self.held_out, self.name = (data.validation, "validation") if data.validation else (data.test, "test")
        layers = sparsity(job.model)
        self.lines = console.EpochLines(job.config.train.epochs, layers, self.name, job.task.headline)

    def __call__(self, bar: tqdm[Any], clock: float) -> None:
        """Judge and note the epoch that ends, keep its checkpoint, and stop where that has been asked for."""
        job, state = self.job, self.job.state
        found, divergence = self._judged()
        line = self._line(found, divergence, clock)
        state.lines.append(line)
        job.run.append(line)
        bar.write(self.lines.line(line), file=sys.stdout)
        sys.stdout.flush()
        every, epoch = job.config.runtime.snapshots, state.progress.epoch
        if every and epoch % every == 0:
            job.run.save(job.run.snapshot(epoch), evaluation_weights(state.evaluated))
        job.save()
        self.stop.deferred = False
        if self.stop.number:
            raise Interrupted(self.stop.number, f" and saved after epoch {epoch}")

    def _judged(self) -> tuple[dict[str, float], float]:
        """Metrics on what is held out, and the KL."""
        job, state = self.job, self.job.state
        if state.averaged:
            reestimate_batch_norm(state.averaged, job.augmented())
        found = job.task.evaluate(state.evaluated, self.held_out)
        with torch.no_grad():
            divergence = kl(state.evaluated).item()
        if not math.isfinite(found["nll"] + divergence):
            raise not_finite(job.model, None, state.progress, job.steps)
        return found, divergence

    def _line(self, found: dict[str, float], divergence: float, clock: float) -> Record:
        """The epoch's figures, with ``progress`` moved on to the next epoch."""
        job, state = self.job, self.job.state
        progress, headline, steps = state.progress, job.task.headline, job.steps
        layers, totals = sparsity(state.evaluated), progress.sums
        lr, _, weight = job.rates(progress.epoch, steps - 1)
        progress.add(time.perf_counter() - clock)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, torch.zeros_like(totals)
        value = found[headline.name]
        if job.config.train.best_epoch and headline.improves(value, progress.best):
            progress.best, progress.best_epoch = value, progress.epoch
            state.best = {name: tensor.clone() for name, tensor in state.evaluated.state_dict().items()}
        ratio = compression(layers)
        return {
            "epoch": progress.epoch,
            "lr": lr,
            "kl_weight": weight,
            "train_loss": totals[0].item() / steps,
            "kl": divergence,
            f"train_{headline.name}": job.task.training_figure(totals[1].item(), steps * job.config.train.batch_size),
            f"{self.name}_{headline.name}": value,
            "sparsity": {layer.name: layer.sparsity for layer in layers},
            "compression": ratio if math.isfinite(ratio) else None,
            "seconds": progress.seconds,
        }
