"""The only loop: the steps of a run, from where its checkpoint left off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import machine
from ..config import Config
from ..conversion import advance, kl
from ..counts import sparsity
from ..data import Data, Dataset
from ..errors import UserError
from ..layers import Noise, noisy_layers
from ..math import schedule
from ..methods import Method
from ..objective import objective
from ..runs import Record, Run
from ..tasks import Task
from . import console
from .describe import describe, finalise
from .epoch_end import EpochEnd
from .failure import not_finite
from .preflight import check_fit
from .start import network_of
from .state import State
from .stopping import Interrupted, Stop

CHUNK = 500  # of the batches that batch-norm statistics are estimated from


class Training:
    """One run in this process: its data, its network, and its state as far as its checkpoint had come."""

    def __init__(self, config: Config, run: Run, stop: Stop) -> None:
        assert isinstance(config.dataset, Dataset)
        assert isinstance(config.method, Method)
        assert isinstance(config.task, Task)
        self.config, self.run, self.stop = config, run, stop
        self.method, self.task = config.method, config.task
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.device = machine.device(config.runtime)
        self.precision = machine.precision(config.runtime, self.device)
        machine.prepare_process(config.runtime.threads)
        origin = machine.provenance(config.runtime, self.device, started)  # now: a checkout can move on meanwhile
        self.data: Data = config.dataset.prepare(Path(config.data_dir), self.device, config.runtime.progress)
        if config.dataset.outline() is None:
            check_fit(config, self.data.spec, len(self.data.train), self.device)
        network = network_of(config, self.data.spec, started=run.checkpoint.exists())
        if config.runtime.precision == "bf16_variance":
            for _, layer in noisy_layers(network):
                layer.variance_dtype = torch.bfloat16
        self.model = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Any] = self.model
        self.divergence: Callable[[nn.Module], Tensor] = kl
        if config.runtime.compile:
            torch.compiler.reset()  # torch gives up compiling a function that has met too many networks in one process
            self.forward = machine.compiled(self.forward, self.device)
            self.divergence = machine.compiled(self.divergence, self.device)
        self.state = State(self.model, config.train, self.device, origin)
        self.steps = len(self.data.train) // config.train.batch_size  # of an epoch
        torch.manual_seed(config.seed)
        if run.checkpoint.exists():
            self._restore()
        if self.state.lines or run.metrics.exists():
            run.write_epochs(self.state.lines)  # what was written after the last checkpoint is trained, and said, again

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
        end_epoch = EpochEnd(self)
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

    def rates(self, epoch: int, step: int) -> tuple[float, float, float]:
        """Learning rates of weights and of noise parameters, and the KL weight, of one step."""
        train = self.config.train
        share = (epoch if train.per_epoch else epoch + step / self.steps) / train.epochs
        lr = train.lr * schedule.learning_rate_factor(share, train.lr_flat)
        warmth = schedule.kl_weight(share, train.kl_start, train.kl_full)
        weight = train.kl_weight * schedule.kl_weight(share, train.kl_start, train.kl_full, train.kl_peak, train.kl_settled)
        return lr, train.noise_lr * (lr * warmth if train.noise_waits else lr), weight

    def save(self) -> None:
        """Keep all that resuming needs."""
        self.run.save(self.run.checkpoint, {**self.state.as_dict(), "imports": self.config.imports})

    def _restore(self) -> None:
        saved = self.run.resume()
        check_same_source(self.config, saved.get("imports", {}), self.run)
        try:
            self.state.restore(saved)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            raise UserError(
                f"{self.run.checkpoint} does not fit this version of svdo; delete it and repeat the command to train anew"
            ) from None

    def augmented(self) -> Iterator[Tensor]:
        """Training inputs as training sees them: on those without padding and shifts batch norm has other statistics."""
        data, config = self.data.train, self.config
        return (inputs for inputs, _ in data.batches(min(CHUNK, len(data)), config.seed, config.train.epochs))

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


def check_same_source(config: Config, before: Mapping[str, str], run: Run) -> None:
    """Raise ``UserError`` where a module of the user's that the run is made of is not what it was when it was trained."""
    for name, sha256 in config.imports.items():
        if before.get(name, sha256) != sha256:
            raise UserError(
                f"{name} has changed since {run.id} was trained with it; delete {run.folder} to train anew, or name another"
                " folder with results_dir=..."
            )
