"""The only loop: from a checked configuration to a finished record, resumable at every step."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, console, schedule
from .config import Config, RuntimeConfig, TrainConfig, UserError, require
from .conversion import convert, kl
from .data import Data, prepare
from .evaluate import evaluate
from .fetch import load
from .layers import Noise, noisy_layers, weight_layers
from .methods import Method
from .models import Model, build
from .objective import objective
from .prune import compression, sparsity
from .runs import Record, Run

SAMPLES = 10  # noisy passes in the sampled evaluation of a record


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after everything was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.message, self.signal_number = message, signal_number


@dataclass
class Progress:
    """Where a run stands: ``epoch`` and ``step`` are the next to compute; sums are over the steps of this epoch."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # of loss and of errors


def execute(config: Config) -> tuple[str, Record]:
    """Train the run, or go on with it, or find it done; returns "done" or "skipped" with its record.

    Raises:
        UserError: on anything the user can mend.
        Interrupted: on Ctrl-C or SIGTERM, with everything saved.
    """
    run = Run(config.results_dir, config.id)
    record = run.result()
    if record is None:
        with run.open(waiting=_say):
            record = run.result()  # another process may have finished it while this one waited
            if record is None:
                with _signals() as pending:
                    return "done", _train(config, run, pending)
    _say(f"{run.id} is done: {run.folder}\n\n{console.layer_table(record)}")
    return "skipped", record


def _train(config: Config, run: Run, pending: list[int]) -> Record:
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    device = _device(config.runtime)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    torch.set_flush_denormal(True)  # removed weights shrink to denormals, which CPUs multiply many times slower
    images = load(config.dataset.name, Path(config.data_dir).expanduser(), progress=config.runtime.progress)
    data = prepare(config.dataset, images, device)
    model = _model(config, data).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, config.train, device)
    progress = Progress()
    torch.manual_seed(config.seed)
    if run.checkpoint.exists():
        _restore(run, model, optimizer, progress, device)
    run.forget_epochs_after(progress.epoch)

    layers = sparsity(model)
    sizes = {"train": len(data.train), "validation": len(data.validation or ()), "test": len(data.test)}
    resumed = f" (resuming at epoch {progress.epoch + 1}, step {progress.step + 1})" if progress.epoch or progress.step else ""
    weights = sum(layer.weights for layer in layers)
    _say(console.plan(config, _device_name(device), sizes, weights, str(run.folder), resumed) + "\n")
    _fit(config, run, data, model, optimizer, progress, device, pending)

    record = _record(config, data, model, progress, started, device)
    checkpoint.save(run.weights, model.state_dict())
    run.finish(record)
    _say(f"\n{console.layer_table(record)}\n\nrecord {run.folder / 'result.json'}")
    return record


def _fit(
    config: Config,
    run: Run,
    data: Data,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    device: torch.device,
    pending: list[int],
) -> None:
    train, n_train = config.train, len(data.train)
    steps = n_train // train.batch_size
    require(
        steps > 0 or not train.epochs,
        f"train.batch_size={train.batch_size} exceeds the {n_train} training images; take a smaller batch",
    )
    held_out, held_out_name = (data.validation, "validation") if data.validation else (data.test, "test")
    lines = console.EpochLines(train.epochs, [name for name, _ in weight_layers(model)], held_out_name)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.runtime.precision == "bf16")
    if progress.epoch < train.epochs:
        _say(lines.header)
    with _bar(config.runtime, train.epochs * steps, progress.epoch * steps + progress.step) as bar:
        while progress.epoch < train.epochs:
            clock = time.perf_counter()
            model.train()
            sums = progress.sums.to(device)
            for x, y in data.train.batches(train.batch_size, config.seed, progress.epoch, progress.step):
                share = (progress.epoch + progress.step / steps) / train.epochs
                lr = train.lr * schedule.learning_rate_factor(share, train.lr_flat)
                weight = schedule.kl_weight(share, train.kl_start, train.kl_full)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                with autocast:
                    logits = model(x)
                loss = objective(logits.float(), y, kl(model) if weight else _zero(device), n_train, weight)
                if device.type == "cpu" and not torch.isfinite(loss):
                    raise _not_finite(model, x, progress)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    sums += torch.stack([loss.detach(), (logits.argmax(1) != y).sum()])
                progress.step += 1
                bar.update()
                if pending and progress.step < steps:
                    progress.sums = sums.cpu()
                    progress.seconds += time.perf_counter() - clock
                    raise _interrupted(run, model, optimizer, progress, pending[0], device)
            totals = sums.cpu()
            if not torch.isfinite(totals).all():
                raise _not_finite(model, None, progress)
            error = evaluate(model, held_out)["error"]
            with torch.no_grad():
                divergence = kl(model).item()
            layers = sparsity(model)
            progress.seconds += time.perf_counter() - clock
            progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, torch.zeros_like(totals)
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
            run.append(line)
            bar.write(lines.line(line), file=sys.stdout)
            sys.stdout.flush()
            _save(run, model, optimizer, progress, device)
            if pending:
                raise _interrupted(run, model, optimizer, progress, pending[0], device)


def _model(config: Config, data: Data) -> nn.Module:
    assert isinstance(config.model, Model)
    assert isinstance(config.method, Method)
    network = build(config.model, data.shape, data.classes, config.seed)
    if config.pretrained:
        _start_from(network, config)
    if not list(weight_layers(network)):
        raise UserError(f"model={config.model.name} has no Linear or Conv2d layer")
    model = convert(network, config.method)
    if config.runtime.precision == "bf16_variance":
        for _, layer in noisy_layers(model):
            layer.variance_dtype = torch.bfloat16
    return model


def _start_from(network: nn.Module, config: Config) -> None:
    parent = Run(config.results_dir, config.pretrained)
    record = parent.result()
    require(record is not None, f"pretrained={config.pretrained}: no finished run in {parent.folder}")
    require(
        parent.weights.exists(),
        f"pretrained={config.pretrained}: {parent.weights} is missing; delete that run's result.json and train it again",
    )
    weights = checkpoint.load(parent.weights)
    try:
        network.load_state_dict({key: value for key, value in weights.items() if "noise." not in key})
    except RuntimeError:
        raise UserError(f"pretrained={config.pretrained}: its network is not a {config.model.name} of this shape") from None


def _optimizer(model: nn.Module, train: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and filters alone: on a noise parameter it would be a second, unintended prior."""
    noise = {id(p) for module in model.modules() if isinstance(module, Noise) for p in module.parameters()}
    decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in noise]
    rest = [p for p in model.parameters() if p.dim() <= 1 or id(p) in noise]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cpu", "cuda")
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, train.lr, momentum=train.momentum, fused=fused)
    return torch.optim.Adam(groups, train.lr, betas=(train.momentum, 0.999), fused=fused)


def _save(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, device: torch.device) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": checkpoint.generator_states(device),
        "progress": vars(progress),
    }
    checkpoint.save(run.checkpoint, state)


def _restore(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, device: torch.device) -> None:
    state = checkpoint.load(run.checkpoint)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        vars(progress).update(state["progress"])
    except (KeyError, RuntimeError, ValueError):
        raise UserError(
            f"{run.checkpoint} does not fit this version of the program; delete it and repeat the command to train anew"
        ) from None
    checkpoint.restore_generators(state["generators"], device)


def _record(config: Config, data: Data, model: nn.Module, progress: Progress, started: str, device: torch.device) -> Record:
    layers = sparsity(model)
    weights, nonzero = sum(layer.weights for layer in layers), sum(layer.nonzero for layer in layers)
    record: dict[str, Any] = {
        "schema": 1,
        "id": config.id,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "seed": config.seed,
        "config": config.as_dict(),
        "test": evaluate(model, data.test),
        "train": evaluate(model, data.train),
        "layers": [{**vars(layer), "sparsity": layer.sparsity} for layer in layers],
        "weights": weights,
        "nonzero": nonzero,
        "sparsity": 100.0 * (1.0 - nonzero / weights),
        "compression": _finite(compression(layers)),
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 3),
        "provenance": {
            "commit": _commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": _device_name(device),
            "precision": config.runtime.precision,
            "threads": torch.get_num_threads(),
            "host_cores": os.cpu_count(),
            "started": started,
        },
    }
    if data.validation is not None:
        record["validation"] = evaluate(model, data.validation)
    if any(noisy_layers(model)):
        torch.manual_seed(config.seed)
        record["test_sampled"] = {"samples": SAMPLES, **evaluate(model, data.test, samples=SAMPLES)}
    return record


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)


def _not_finite(model: nn.Module, x: Tensor | None, progress: Progress) -> UserError:
    """Names the first layer whose parameters or output are not finite."""
    place = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if place is None and x is not None:
        found: list[str] = []
        hooks = [
            layer.register_forward_hook(
                lambda _m, _i, output, name=name: None if torch.isfinite(output).all() else found.append(name)
            )
            for name, layer in weight_layers(model)
        ]
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
        place = found[0] if found else None
    where = f"first seen in {place}" if place else "no single layer to blame"
    return UserError(
        f"the loss is not finite at epoch {progress.epoch + 1}, step {progress.step + 1} ({where});"
        " the last good checkpoint is kept; try a smaller train.lr"
    )


def _interrupted(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    number: int,
    device: torch.device,
) -> Interrupted:
    _save(run, model, optimizer, progress, device)
    position = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
    return Interrupted(f"stopped; saved before {position}; repeat the command to go on", number)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM for the loop to act on between two steps; a second Ctrl-C stops at once."""
    pending: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(number)
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)

    with contextlib.suppress(ValueError):  # not the main thread: there is no handler to set
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bar(runtime: RuntimeConfig, total: int, initial: int) -> tqdm[Any]:
    disable = None if runtime.progress else True  # None: shown on a terminal only
    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, disable=disable, leave=False)


def _device(runtime: RuntimeConfig) -> torch.device:
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(runtime.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"runtime.device={runtime.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _commit() -> str:
    """The checkout's commit, "+" behind it where files differ; empty outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        # An installed copy may lie inside somebody else's checkout: only a tracked file speaks for its commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed.strip() else "")


def _say(text: str) -> None:
    print(text, flush=True)
