"""What no run's record holds, measured once for a report and kept as ``results/measured/NAME.json``."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import estimators, machine, train
from ..cli.compose import compose
from ..conversion import convert
from ..conversion import kl as kl_of
from ..counts import at_threshold
from ..data import Data, sources
from ..errors import UserError
from ..evaluate import auroc, entropy, evaluate, log_probabilities, metrics
from ..layers import noisy_layers, weight_layers
from ..math.divergence import CUBIC_CONSTANT, EPS, K1, K2, K3, cubic_kl, exact_kl, sigmoid_kl
from ..methods.sparsevd import PARAMETERIZATIONS, SparseVD
from ..objective import objective
from ..runs import Run, with_weights
from ..runs.disk import hold, write_atomically
from .collect import Evidence, kept_measurement, measurement_file, network_ids

Part = TypeVar("Part", bound=tuple[Any, ...])
Networks = dict[str, list[tuple[nn.Module, Data]]]  # those that a report needs, with their data, one per seed


@dataclass(frozen=True)
class Effort:
    """How much is drawn for a measurement."""

    batches: int = 400  # minibatches that a gradient's variance is taken over,
    separate_batches: int = 20  # with a draw of all weights for each example, of which one takes a minute,
    alpha_batches: int = 60  # and at each of many alphas
    size: int = 1000  # examples in such a minibatch
    samples: int = 30  # noisy passes of a sampled prediction
    steps: int = 40  # training steps that are timed,
    separate_steps: int = 3  # and with a draw of all weights for each example


COSTED = (
    "dataset=mnist",
    "model=mlp",
    "model.width=1024",
    "method=vd_b",
    "runtime.device=cpu",
)  # what training costs is measured on
TOY = Effort(batches=3, separate_batches=2, alpha_batches=3, size=50, samples=2, steps=2, separate_steps=1)


def measure(evidence: Evidence) -> None:
    """Make the report's measurement unless another process has: one at a time, since some take the time of what they do."""
    report, results_dir = evidence.report, evidence.results_dir
    folder = measurement_file(report, results_dir).parent
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        hold(held, lambda: print("another process is measuring; waiting for it to end", flush=True))
        if kept_measurement(report, results_dir, evidence.needs) is None:
            _measure(evidence)
    finally:
        os.close(held)


def _measure(evidence: Evidence) -> None:
    """Keep by row one record per network, what the report's figures show, and how all of it came about."""
    report = evidence.report
    print(f"\n=== measuring {report.measure}", flush=True)
    clock, measured_in = time.perf_counter(), replace(evidence.runtime, precision="fp32")  # whatever its networks' is
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if evidence.runtime.threads:
        torch.set_num_threads(evidence.runtime.threads)
    provenance = machine.provenance(measured_in, torch.device("cpu"), started)  # now: a checkout can move on meanwhile
    networks: Networks = {}
    for name, runs in evidence.needs.items():
        networks[name] = []
        for run in runs:
            place = with_weights(run.config.results_dir, run.config.id)
            if place is None:
                raise UserError(f"{run.config.id} has no weights; svdo-report run {report.name} trains it again")
            networks[name].append(train.trained(run.config, place))
    try:
        found = MEASURES[report.measure](networks, evidence.data_dir, TOY if report.quick else Effort())
    except ImportError as error:
        raise UserError(f"measuring {report.measure} needs more: {error}; pip install '.[plot]'") from None
    found |= {
        "networks": network_ids(evidence.needs),
        "seconds": round(time.perf_counter() - clock, 3),
        "provenance": provenance,
    }
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    write_atomically(measurement_file(report, evidence.results_dir), lambda file: file.write(text.encode()))


def _timed(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts of a measurement, and on the terminal how far it is: some take most of an hour."""
    for number, part in enumerate(parts, 1):
        clock = time.perf_counter()
        yield part
        print(f"{number}/{len(parts)}  {' '.join(map(str, part))}  {time.perf_counter() - clock:.0f} s", flush=True)


def kl(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """The approximations of the KL against the exact one over log alpha in [-10, 10], and the sigmoid fitted anew."""
    from scipy.optimize import curve_fit

    grid = np.linspace(-10.0, 10.0, 10001)
    exact = exact_kl(grid)
    half_softplus = 0.5 * np.logaddexp(0.0, -grid)

    def sigmoid(at: Any, k1: float, k2: float, k3: float) -> Any:
        return k1 / (1.0 + np.exp(k2 + k3 * at)) + half_softplus

    fitted, _ = curve_fit(sigmoid, grid, exact, (0.5, 1.0, 1.0))
    at = torch.from_numpy(grid)
    curves = {
        "sigmoid": sigmoid_kl(at).numpy(),
        "refitted": sigmoid(grid, *fitted),
        "cubic": np.where(grid <= 0.0, cubic_kl(at).numpy(), np.nan),
        "bound": np.where(grid <= 0.0, -CUBIC_CONSTANT - 0.5 * grid, np.nan),
    }
    found: dict[str, Any] = {name: [_deviations(grid, values - exact)] for name, values in curves.items()}
    found["sigmoid"][0]["constants"], found["refitted"][0]["constants"] = [K1, K2, K3], [float(k) for k in fitted]
    shown = {name: [None if np.isnan(v) else round(float(v), 6) for v in values[::50]] for name, values in curves.items()}
    return found | {"curves": {"log_alpha": grid[::50].round(3).tolist(), "exact": exact[::50].round(6).tolist(), **shown}}


def _deviations(at: Any, missed: Any) -> dict[str, Any]:
    """The largest miss, half the range of the misses, and the largest miss of the slope, where there is an approximation."""
    defined = np.isfinite(missed)
    at, missed = at[defined], missed[defined]
    slope = np.gradient(missed, at, edge_order=2)
    return {"deviation": float(np.abs(missed).max()), "free": float(np.ptp(missed)) / 2, "slope": float(np.abs(slope).max())}


def gradient_variance(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Each estimator's gradient variance in the first (bottom) and the last (top) layer of each network; a record per seed."""
    found: dict[str, Any] = {}
    parts = list(itertools.product(networks, estimators.ESTIMATORS))
    for name, estimator in _timed(parts):
        found[f"{estimator} {name}"] = [_variance(model, data, estimator, effort) for model, data in networks[name]]
    return found


def _variance(model: nn.Module, data: Data, estimator: str, effort: Effort) -> dict[str, Any]:
    names = [name for name, _ in weight_layers(model)]
    batches = effort.separate_batches if estimator == "separate" else effort.batches
    values = estimators.gradient_variance(model, data.train, estimator, [names[0], names[-1]], batches, effort.size)
    error = evaluate(model, data.test)["error"]
    bottom, bottom_error = estimators.mean_and_error(values[names[0]])
    top, top_error = estimators.mean_and_error(values[names[-1]])
    spread = {"bottom": bottom_error, "top": top_error}
    return {"bottom": bottom, "top": top, "spread": spread, "error": error, "batches": batches}


def uncertainty(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Quality and calibration of three predictions on the test set, and how well their entropy tells Fashion-MNIST from it.

    ``thresholded``: the network that evaluation uses; ``mean``: no weight removed; ``sampled``: averaged over noisy passes.
    """
    other = sources.load("fashion_mnist", data_dir)
    found: dict[str, Any] = {}
    for (name,) in _timed([(name,) for name in networks]):
        for model, data in networks[name]:
            pixels, labels = torch.from_numpy(other.test_images), torch.from_numpy(other.test_labels).long()
            fashion = replace(data.test, images=pixels, labels=labels)
            for way, samples, threshold in (("thresholded", 0, None), ("mean", 0, math.inf), ("sampled", effort.samples, None)):
                torch.manual_seed(0)
                with at_threshold(model, threshold) if threshold else contextlib.nullcontext():
                    known, unknown = (log_probabilities(model, split, samples) for split in (data.test, fashion))
                record = {**metrics(known, data.test.labels), "auroc": auroc(entropy(known), entropy(unknown))}
                found.setdefault(f"{way} {name}", []).append(record)
    return found


def parameterization(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Variance of theta's gradient in the first layer, with one alpha for all weights of a trained dense network, by log alpha.

    Additive, sigma does not depend on theta; multiplicative, sigma = sqrt(alpha) |theta|, and its noise reaches theta. Both see
    the same minibatches and noise: ``excess``, by how many percent the second varies more, is known better than the variances.
    """
    ((dense, data),) = networks["dense"]
    first = next(name for name, _ in weight_layers(dense))
    estimates: dict[str, dict[int, list[float]]] = {name: {} for name in PARAMETERIZATIONS}
    for log_alpha, name in _timed(list(itertools.product(range(-8, 5), PARAMETERIZATIONS))):
        model = convert(dense, SparseVD(parameterization=name, train_clip=False))
        with torch.no_grad():
            for _, layer in noisy_layers(model):
                sigma = layer.noise.get_parameter("log_sigma2" if name == "additive" else "raw_log_alpha")
                sigma.fill_(log_alpha)
                if name == "additive":
                    sigma.add_((layer.weight.square() + EPS).log())
        values = estimators.gradient_variance(model, data.train, "local", [first], effort.alpha_batches, effort.size)
        estimates[name][log_alpha] = values[first]
    excess = {}
    for log_alpha, additive in estimates["additive"].items():
        pairs = zip(additive, estimates["multiplicative"][log_alpha], strict=True)
        excess[log_alpha] = [100.0 * (other - own) / statistics.fmean(additive) for own, other in pairs]
    found = {name: [_over_alpha("variance", values)] for name, values in estimates.items()}
    return found | {"excess": [_over_alpha("excess", excess)]}


def _over_alpha(key: str, estimates: dict[int, list[float]]) -> dict[str, Any]:
    """By log alpha, the mean of independent estimates and its standard error."""
    found = {log_alpha: estimators.mean_and_error(values) for log_alpha, values in estimates.items()}
    return {
        key: {str(log_alpha): mean for log_alpha, (mean, _) in found.items()},
        "spread": {f"{key}.{log_alpha}": error for log_alpha, (_, error) in found.items()},
    }


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
            (objective(training.model(images), labels, divergence, len(training.data.train), parts) / parts).backward()
            divergence = torch.zeros(())
    for optimizer in training.optimizers:
        optimizer.step()
    return time.perf_counter() - clock


def _peak(watched: torch.profiler.profile) -> int:
    """The most bytes that the tensors made meanwhile held at one time."""
    results: Any = watched.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return int(max(itertools.accumulate(change for _, change in changes)))


MEASURES: dict[str, Callable[[Networks, Path, Effort], dict[str, Any]]] = {
    "cost": cost,
    "kl": kl,
    "gradient_variance": gradient_variance,
    "parameterization": parameterization,
    "uncertainty": uncertainty,
}
