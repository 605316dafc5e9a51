"""The only loop: the steps of a run, from where its checkpoint left off."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import machine
from ..config import Config
from ..conversion import advance
from ..counts import sparsity
from ..layers import Noise, noisy_layers
from ..objective import objective
from ..runs import Record, Run
from . import console
from .describe import describe, finalise
from .epoch_end import EpochEnd
from .failure import not_finite
from .job import Job
from .stopping import Interrupted, Stop


class Training(Job):
    """A run that is being trained; ``stop`` says when it has been asked to end early."""

    def __init__(self, config: Config, run: Run, stop: Stop) -> None:
        super().__init__(config, run)
        self.stop = stop

    def finish(self) -> Record:
        """Train what is left, bring the network into its last state, and write the record."""
        self._announce()
        self._fit()
        seen = finalise(self)
        record = describe(self, seen)
        self.run.save(self.run.weights, self.state.evaluated.state_dict())
        record = self.run.finish(record, self.state.lines)
        console.say(f"\n{console.layer_table(record)}\n\nrecord {self.run.record}")
        return record

    def _fit(self) -> None:
        train, progress = self.config.train, self.state.progress
        if progress.epoch == train.epochs:
            return
        end_epoch = EpochEnd(self, self.stop)
        console.say(end_epoch.lines.header)
        with self._bar() as bar:
            while progress.epoch < train.epochs:
                clock = time.perf_counter()
                self._epoch(bar, clock)
                end_epoch(bar, clock)

    def _epoch(self, bar: tqdm[Any], clock: float) -> None:
        """The steps that are left of this epoch."""
        state, progress, train = self.state, self.state.progress, self.config.train
        sums = progress.sums.to(self.device)
        self.model.train()
        self.stop.deferred = True
        if progress.step == 0:
            state.carried = None
        for inputs, targets in self.data.train.batches(train.batch_size, self.config.seed, progress.epoch, progress.step):
            sums += self._step(inputs, targets)
            progress.step += 1
            bar.update()
            if self.stop.number:
                self._close(sums)
                progress.add(time.perf_counter() - clock)
                self.save()
                raise Interrupted(self.stop.number, f" and saved after epoch {progress.epoch + 1}, step {progress.step}")
        self._close(sums)

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step; returns its loss and its part of the training figure, (2,)."""
        state, progress, task = self.state, self.state.progress, self.task
        lr, noise_lr, weight = self.rates(progress.epoch, progress.step)
        state.set_rates(lr, noise_lr)
        advance(self.model, progress.epoch * self.steps + progress.step, self.config.train.epochs * self.steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            outputs, state.carried = task.forward(self.forward, inputs, state.carried)
        divergence = self.divergence(self.model) if weight else torch.zeros((), device=self.device)
        loss = objective(task.loss(outputs, targets), divergence, task.size(self.data.train), weight)
        if self.device.type == "cpu" and not torch.isfinite(loss):  # elsewhere, asking would stall every step
            raise not_finite(self.model, inputs, progress, self.steps)
        self.model.zero_grad()
        loss.backward()
        state.step()
        with torch.no_grad():
            return torch.stack([loss.detach(), task.tally(outputs, targets)])

    def _close(self, sums: Tensor) -> None:
        """Take over the sums of the steps done; the first time that a GPU is asked whether all were finite."""
        self.state.progress.sums = sums.cpu()
        if not torch.isfinite(self.state.progress.sums).all():
            raise not_finite(self.model, None, self.state.progress, self.steps)

    def _announce(self) -> None:
        """Say what will be trained, on what, and where it goes."""
        progress, data = self.state.progress, self.data
        sizes = {"train": len(data.train), "validation": len(data.validation or ()), "test": len(data.test)}
        resumed = f" (resuming at epoch {progress.epoch + 1}, step {progress.step + 1})"
        folder = str(self.run.folder) + (resumed if progress.epoch or progress.step else "")
        weights = sum(layer.weights for layer in sparsity(self.model))
        has_kl = any(type(layer.noise).kl is not Noise.kl for _, layer in noisy_layers(self.model))
        device = f"{machine.device_name(self.device)}, {self.precision}"
        if self.precision != "fp32" and not machine.has_bf16(self.device):
            device += "; not known to have instructions for that, runtime.precision=fp32 may be many times faster"
        divided_by = self.task.size(data.train) if has_kl else None
        console.say(console.plan(self.config, device, sizes, weights, divided_by, folder) + "\n")

    def _bar(self) -> tqdm[Any]:
        progress = self.state.progress
        return tqdm(
            total=self.config.train.epochs * self.steps,
            initial=progress.epoch * self.steps + progress.step,
            unit="step",
            dynamic_ncols=True,
            leave=False,
            disable=None if self.config.runtime.progress else True,  # None: shown on a terminal only
        )
