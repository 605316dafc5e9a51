"""All that one run needs in this process, as far as its checkpoint had come; the loop, epoch ends and the record work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import machine
from ..config import Config
from ..conversion import kl
from ..data import Data, Dataset
from ..errors import UserError
from ..layers import noisy_layers
from ..math import schedule
from ..methods import Method
from ..runs import Run
from ..tasks import Task
from .preflight import check_fit
from .start import network_of
from .state import State

CHUNK = 500  # of the batches that batch-norm statistics are estimated from


class Job:
    """One run's data, network and state; ``steps`` are those of an epoch."""

    def __init__(self, config: Config, run: Run) -> None:
        assert isinstance(config.dataset, Dataset)
        assert isinstance(config.method, Method)
        assert isinstance(config.task, Task)
        self.config, self.run = config, run
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


def check_same_source(config: Config, before: Mapping[str, str], run: Run) -> None:
    """Raise ``UserError`` where a module of the user's that the run is made of is not what it was when it was trained."""
    for name, sha256 in config.imports.items():
        if before.get(name, sha256) != sha256:
            raise UserError(
                f"{name} has changed since {run.id} was trained with it; delete {run.folder} to train anew, or name another"
                " folder with results_dir=..."
            )
