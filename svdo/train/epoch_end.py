"""What happens when an epoch is over: the network is evaluated, noted, shown and kept."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..batch_norm import reestimate_batch_norm
from ..conversion import kl
from ..counts import compression, evaluation_weights, sparsity
from ..runs import Record
from . import console
from .failure import not_finite
from .stopping import Interrupted

if TYPE_CHECKING:
    from .loop import Training


class EpochEnd:
    """``held_out`` is what epochs are judged on: validation data where some are held out, else the test set."""

    def __init__(self, training: Training) -> None:
        self.training = training
        data = training.data
        self.held_out, self.name = (data.validation, "validation") if data.validation else (data.test, "test")
        layers = sparsity(training.model)
        self.lines = console.EpochLines(training.config.train.epochs, layers, self.name, training.task.headline)

    def __call__(self, bar: tqdm[Any], clock: float) -> None:
        """Judge and note the epoch that ends, keep its checkpoint, and stop where that has been asked for."""
        training, state = self.training, self.training.state
        found, divergence = self._judged()
        line = self._line(found, divergence, clock)
        state.lines.append(line)
        training.run.append(line)
        bar.write(self.lines.line(line), file=sys.stdout)
        sys.stdout.flush()
        every, epoch = training.config.runtime.snapshots, state.progress.epoch
        if every and epoch % every == 0:
            training.run.save(training.run.snapshot(epoch), evaluation_weights(state.evaluated))
        training.save()
        training.stop.deferred = False
        if training.stop.number:
            raise Interrupted(training.stop.number, f" and saved after epoch {epoch}")

    def _judged(self) -> tuple[dict[str, float], float]:
        """Metrics on what is held out, and the KL."""
        training, state = self.training, self.training.state
        if state.averaged:
            reestimate_batch_norm(state.averaged, training.augmented())
        found = training.task.evaluate(state.evaluated, self.held_out)
        with torch.no_grad():
            divergence = kl(state.evaluated).item()
        if not math.isfinite(found["nll"] + divergence):
            raise not_finite(training.model, None, state.progress, training.steps)
        return found, divergence

    def _line(self, found: dict[str, float], divergence: float, clock: float) -> Record:
        """The epoch's figures, with ``progress`` moved on to the next epoch."""
        training, state = self.training, self.training.state
        progress, headline, steps = state.progress, training.task.headline, training.steps
        layers, totals = sparsity(state.evaluated), progress.sums
        lr, _, weight = training.rates(progress.epoch, steps - 1)
        progress.add(time.perf_counter() - clock)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, torch.zeros_like(totals)
        value = found[headline.name]
        if training.config.train.best_epoch and headline.improves(value, progress.best):
            progress.best, progress.best_epoch = value, progress.epoch
            state.best = {name: tensor.clone() for name, tensor in state.evaluated.state_dict().items()}
        ratio = compression(layers)
        return {
            "epoch": progress.epoch,
            "lr": lr,
            "kl_weight": weight,
            "train_loss": totals[0].item() / steps,
            "kl": divergence,
            f"train_{headline.name}": training.task.training_figure(totals[1].item(), steps * training.config.train.batch_size),
            f"{self.name}_{headline.name}": value,
            "sparsity": {layer.name: layer.sparsity for layer in layers},
            "compression": ratio if math.isfinite(ratio) else None,
            "seconds": progress.seconds,
        }
