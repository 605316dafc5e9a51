"""The only loop: from a checked configuration to a finished record, resumable at every step."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .. import machine
from ..config import Config
from ..conversion import advance, kl
from ..counts import compression, evaluation_weights, sparsity, storage
from ..data import prepare
from ..data.sources import load
from ..errors import UserError
from ..evaluate import CHUNK, evaluate, reestimate_batch_norm
from ..layers import Noise, dropout_rates, noisy_layers, weight_layers
from ..math import schedule
from ..methods import Method
from ..objective import objective
from ..runs import Record, Run, checkpoint
from . import console
from .optimizers import optimizers
from .preflight import preflight
from .progress import Progress
from .start import network_of
from .stopping import Interrupted, Stop, signals

SAMPLES = 10  # noisy passes in the sampled evaluation of a record


def execute(config: Config) -> tuple[str, Record]:
    """Train the run, or go on with it, or find it done; returns "done" or "skipped" with its record.

    Raises:
        UserError: on anything the user can mend.
        Interrupted: on Ctrl-C or SIGTERM, with everything saved.
    """
    run = Run(config.results_dir, config.id)
    record = run.result()
    if record is None:
        preflight(config)
        with run.open(waiting=_say):
            record = run.result()  # another process may have finished it while this one waited
            if record is None:
                try:
                    with signals() as stop:
                        return "done", Training(config, run, stop).finish()
                except (UserError, OSError):
                    raise
                except Exception as error:
                    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # on CPUs torch says it so
                        raise UserError("out of memory; take a smaller network or train.batch_size") from None
                    with contextlib.suppress(OSError):
                        run.error.write_text(traceback.format_exc())
                    raise
    if run.checkpoint.exists() and not run.busy():
        run.checkpoint.unlink(missing_ok=True)  # of a process that was killed right after it wrote the record
    _say(f"{run.id} is done: {run.folder}\n\n{console.layer_table(record)}")
    return "skipped", record


class Training:
    """One run in this process: its data, network, optimizer and progress, as far as its checkpoint had come."""

    def __init__(self, config: Config, run: Run, stop: Stop) -> None:
        self.config, self.run, self.stop = config, run, stop
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.device = machine.device(config.runtime)
        self.precision = machine.precision(config.runtime, self.device)
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        self.origins = [machine.provenance(config.runtime, self.device, started)]  # now: a checkout can move on meanwhile
        machine.keep_freed_memory()
        machine.compute_exactly()
        torch.set_flush_denormal(True)  # removed weights shrink to denormals, which CPUs multiply many times slower
        images = load(config.dataset.name, Path(config.data_dir), config.runtime.progress)
        self.data = prepare(config.dataset, images, self.device)
        network = network_of(config, self.data, started=run.checkpoint.exists())
        if config.runtime.precision == "bf16_variance":
            for _, layer in noisy_layers(network):
                layer.variance_dtype = torch.bfloat16
        self.model = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.divergence: Callable[[nn.Module], Tensor] = kl
        if config.runtime.compile:
            torch.compiler.reset()  # torch gives up compiling a function that has met too many networks in one process
            self.forward = machine.compiled(self.forward, self.device)
            self.divergence = machine.compiled(self.divergence, self.device)
        self.optimizers = optimizers(self.model, config.train)
        self.averaged: AveragedModel | None = None
        if config.train.averaging:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.train.averaging))
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        torch.manual_seed(config.seed)
        if run.checkpoint.exists():
            self._restore()
        run.forget_epochs_after(self.progress.epoch)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is judged and kept: the average over steps where there is one."""
        return self.averaged.module if self.averaged else self.model

    def finish(self) -> Record:
        """Train what is left, evaluate, and write the record."""
        layers, progress = sparsity(self.model), self.progress
        sizes = {"train": len(self.data.train), "validation": len(self.data.validation or ()), "test": len(self.data.test)}
        resumed = f" (resuming at epoch {progress.epoch + 1}, step {progress.step + 1})"
        folder = str(self.run.folder) + (resumed if progress.epoch or progress.step else "")
        weights = sum(layer.weights for layer in layers)
        has_kl = any(type(layer.noise).kl is not Noise.kl for _, layer in noisy_layers(self.model))
        device = f"{machine.device_name(self.device)}, {self.precision}"
        if self.precision != "fp32" and not machine.has_bf16(self.device):
            device += "; not known to have instructions for that, runtime.precision=fp32 may be many times faster"
        _say(console.plan(self.config, device, sizes, weights, has_kl, folder) + "\n")
        self._fit()
        record = self._record()
        checkpoint.save(self.run.weights, self.evaluated.state_dict())
        self.run.finish(record)
        _say(f"\n{console.layer_table(record)}\n\nrecord {self.run.record}")
        return record

    def _fit(self) -> None:
        train, data, progress = self.config.train, self.data, self.progress
        steps = len(data.train) // train.batch_size
        held_out, held_out_name = (data.validation, "validation") if data.validation else (data.test, "test")
        lines = console.EpochLines(train.epochs, [name for name, _ in weight_layers(self.model)], held_out_name)
        if progress.epoch < train.epochs:
            _say(lines.header)
        with self._bar(steps) as bar:
            while progress.epoch < train.epochs:
                clock = time.perf_counter()
                self._epoch(steps, bar, clock)
                lr, _, weight = self._rates(progress.epoch, steps - 1, steps)
                if self.averaged:
                    reestimate_batch_norm(self.averaged, self._augmented())
                found = evaluate(self.evaluated, held_out)
                with torch.no_grad():
                    divergence = kl(self.evaluated).item()
                if not math.isfinite(found["nll"] + divergence):
                    raise self._not_finite(None)
                error = found["error"]
                layers, totals = sparsity(self.evaluated), progress.sums
                progress.add(time.perf_counter() - clock)
                progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, torch.zeros_like(totals)
                if train.best_epoch and error < progress.best_error:
                    progress.best_error, progress.best_epoch = error, progress.epoch
                    self.best = {name: value.clone() for name, value in self.evaluated.state_dict().items()}
                line = {
                    "epoch": progress.epoch,
                    "lr": lr,
                    "kl_weight": weight,
                    "train_loss": totals[0].item() / steps,
                    "kl": divergence,
                    "train_error": 100.0 * totals[1].item() / (steps * train.batch_size),
                    f"{held_out_name}_error": error,
                    "sparsity": {layer.name: layer.sparsity for layer in layers},
                    "compression": _finite(compression(layers)),
                    "seconds": progress.seconds,
                }
                self.run.append(line)
                bar.write(lines.line(line), file=sys.stdout)
                sys.stdout.flush()
                if (every := self.config.runtime.snapshots) and progress.epoch % every == 0:
                    checkpoint.save(self.run.snapshot(progress.epoch), evaluation_weights(self.evaluated))
                self._save()
                self.stop.deferred = False
                if self.stop.number:
                    raise Interrupted(self.stop.number, f" and saved after epoch {progress.epoch}")
        if self.best:
            self.evaluated.load_state_dict(self.best)
        advance(self.evaluated, train.epochs * steps, train.epochs * steps)

    def _epoch(self, steps: int, bar: tqdm[Any], clock: float) -> None:
        """The steps that are left of this epoch."""
        train, progress, n_train = self.config.train, self.progress, len(self.data.train)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        self.model.train()
        sums = progress.sums.to(self.device)
        self.stop.deferred = True
        for x, y in self.data.train.batches(train.batch_size, self.config.seed, progress.epoch, progress.step):
            lr, noise_lr, weight = self._rates(progress.epoch, progress.step, steps)
            for group in itertools.chain(*(optimizer.param_groups for optimizer in self.optimizers)):
                group["lr"] = (noise_lr if group["noise"] else lr) * group["scale"]
            advance(self.model, progress.epoch * steps + progress.step, train.epochs * steps)
            with autocast:
                logits = self.forward(x)
            divergence = self.divergence(self.model) if weight else torch.zeros((), device=self.device)
            loss = objective(logits.float(), y, divergence, n_train, weight)
            if self.device.type == "cpu" and not torch.isfinite(loss):  # elsewhere, asking would stall every step
                raise self._not_finite(x)
            self.model.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            if self.averaged:
                self.averaged.update_parameters(self.model)
            with torch.no_grad():
                sums += torch.stack([loss.detach(), (logits.argmax(1) != y).sum()])
            progress.step += 1
            bar.update()
            if self.stop.number:
                progress.sums = sums.cpu()
                if not torch.isfinite(progress.sums).all():
                    raise self._not_finite(None)
                progress.add(time.perf_counter() - clock)
                self._save()
                raise Interrupted(self.stop.number, f" and saved after epoch {progress.epoch + 1}, step {progress.step}")
        progress.sums = sums.cpu()
        if not torch.isfinite(progress.sums).all():
            raise self._not_finite(None)

    def _rates(self, epoch: int, step: int, steps: int) -> tuple[float, float, float]:
        """Learning rates of weights and of noise parameters, and the KL weight, of one step."""
        train = self.config.train
        share = (epoch if train.per_epoch else epoch + step / steps) / train.epochs
        lr = train.lr * schedule.learning_rate_factor(share, train.lr_flat)
        warmth = schedule.kl_weight(share, train.kl_start, train.kl_full)
        weight = train.kl_weight * schedule.kl_weight(share, train.kl_start, train.kl_full, train.kl_peak, train.kl_settled)
        return lr, train.noise_lr * (lr * warmth if train.noise_waits else lr), weight

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": checkpoint.generator_states(self.device),
            "progress": vars(self.progress),
            "best": self.best,
            "origins": self.origins,
        }
        if self.averaged:
            state["averaged"] = self.averaged.state_dict()
        checkpoint.save(self.run.checkpoint, state)

    def _restore(self) -> None:
        state = checkpoint.load(self.run.checkpoint)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            vars(self.progress).update(state["progress"])
            self.best = state["best"]
            if self.averaged:
                self.averaged.load_state_dict(state["averaged"])
            checkpoint.restore_generators(state["generators"], self.device)
            earlier, now = state["origins"], self.origins[-1]
            self.origins = earlier if {**earlier[-1], "started": now["started"]} == now else [*earlier, now]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            raise UserError(
                f"{self.run.checkpoint} does not fit this version of svdo; delete it and repeat the command to train anew"
            ) from None

    def _not_finite(self, x: Tensor | None) -> UserError:
        """Names the first layer whose parameters or, given its input, output are not finite."""
        place = next((name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()), None)
        if place is None and x is not None:
            place = _first_overflow(self.model, x)
        step = min(self.progress.step + 1, len(self.data.train) // self.config.train.batch_size)
        return UserError(
            f"the loss is not finite at epoch {self.progress.epoch + 1}, step {step} (first seen in"
            f" {place or 'the loss itself'}); the last good checkpoint is kept; try a smaller train.lr"
        )

    def _bar(self, steps: int) -> tqdm[Any]:
        return tqdm(
            total=self.config.train.epochs * steps,
            initial=self.progress.epoch * steps + self.progress.step,
            unit="step",
            dynamic_ncols=True,
            leave=False,
            disable=None if self.config.runtime.progress else True,  # None: shown on a terminal only
        )

    def _augmented(self) -> Iterator[Tensor]:
        """The training images as training sees them: on those without padding and shifts batch norm has other statistics."""
        data, config = self.data.train, self.config
        return (x for x, _ in data.batches(min(CHUNK, len(data)), config.seed, config.train.epochs))

    def _record(self) -> Record:
        config, data, model = self.config, self.data, self.evaluated
        others: Record = {"best_epoch": self.progress.best_epoch} if self.best else {}
        if any(layer.noise.random for _, layer in noisy_layers(model)):
            torch.manual_seed(config.seed)
            others["test_sampled"] = {"samples": SAMPLES, **evaluate(model, data.test, samples=SAMPLES)}
        assert isinstance(config.method, Method)
        if config.method.sparsifies:
            before = evaluate(model, data.test)
            if reestimate_batch_norm(model, self._augmented()) and self.averaged is None:  # an average never had training's
                others["test_running_statistics"] = before
        if lines := self.run.epochs():
            others["objective"] = lines[(self.progress.best_epoch or len(lines)) - 1]["train_loss"]
        *earlier, last = self.origins
        provenance = {**last, "started": self.origins[0]["started"]} | ({"earlier": earlier} if earlier else {})
        layers, rates = sparsity(model), dropout_rates(model)
        weights, nonzero = sum(layer.weights for layer in layers), sum(layer.nonzero for layer in layers)
        record: Record = {
            "schema": 1,
            "id": config.id,
            "model": config.model.name,
            "dataset": config.dataset.name,
            "method": config.method.name,
            "seed": config.seed,
            "config": config.as_dict(),
            "test": evaluate(model, data.test),
            "train": evaluate(model, data.train),
            "layers": [{**vars(layer), "sparsity": layer.sparsity, "rate": rates.get(layer.name)} for layer in layers],
            "weights": weights,
            "nonzero": nonzero,
            "sparsity": 100.0 * (1.0 - nonzero / weights),
            "compression": _finite(compression(layers)),
            "storage": _finite(storage(model)),
            "epochs": self.progress.epoch,
            "seconds": round(self.progress.seconds, 3),
            "core_seconds": round(self.progress.core_seconds, 3),
            "provenance": provenance,
        }
        if data.validation is not None:
            record["validation"] = evaluate(model, data.validation)
        if not math.isfinite(record["test"]["nll"]):  # of a network that was not trained: the epochs look for themselves
            raise UserError("the test loss is not finite: the network starts too large; nothing was written")
        return record | others


def _first_overflow(model: nn.Module, x: Tensor) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        return lambda _module, _inputs, output: None if torch.isfinite(output).all() else found.append(name)

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in weight_layers(model)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _say(text: str) -> None:
    print(text, flush=True)
