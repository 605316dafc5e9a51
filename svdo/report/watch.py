"""A closer look at one run: how its first layers thin out, where its log alphas end, what other thresholds would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import train
from ..config import Config
from ..counts import at_threshold, sparsity
from ..errors import UserError
from ..layers import noisy_layers
from ..runs import REBUILT, Run, copies
from ..runs.disk import write_atomically
from ..runs.record import parse
from ..tasks.classification import evaluate
from .evidence import Planned

PIECE = (100, 200)  # outputs and inputs of the first dense layer that are shown
BINS = np.linspace(-10.0, 16.0, 53)  # what lies beyond counts in the outermost
THRESHOLDS = np.arange(-3.0, 8.01, 0.25)


def file(config: Config) -> Path:
    """Where what was seen of a run is kept."""
    return Path(config.results_dir).expanduser() / "figures" / "data" / f"{config.id}.npz"


def source(run: Planned) -> Run | None:
    """The run with weights and snapshots, in its own folder or trained again in the store beside it; None where neither has."""
    epochs = list(range(1, run.config.train.epochs + 1))
    runs = copies(run.config.results_dir, run.config.id)
    whole = (found for found in runs if found.weights.exists() and list(found.snapshots()) == epochs and found.result())
    return next(whole, None)


def to_train(run: Planned) -> Planned:
    """The run that yields weights and snapshots: itself, or where its record is done without them, itself in another store."""
    store = run.config.results_dir
    return run.at(store if run.record is None else Path(store) / REBUILT, snapshots=1)


def watch(config: Config, run: Run) -> dict[str, np.ndarray]:
    """What figures show of a run, as arrays.

    ``epochs`` (E,), and after each ``filters`` (E, out, in, h, w) and ``piece`` (E, *PIECE) of the first layers; ``layers`` and
    their ``log_alpha`` counts in ``bins``; ``thresholds``, and ``error`` (percent, test set) and ``compression`` at each; the
    ``record`` of what was watched, as JSON, since a run trained again for its weights may end as another network.
    """
    snapshots = {epoch: run.tensors(path) for epoch, path in run.snapshots().items()}
    first = next(iter(snapshots.values()))
    seen = {"epochs": np.array(list(snapshots)), "thresholds": THRESHOLDS, "record": np.array(json.dumps(run.result()))}
    for key, dimensions in (("filters", 4), ("piece", 2)):
        name = next((name for name, weight in first.items() if weight.dim() == dimensions), None)
        if name is not None:
            weights = torch.stack([weights[name] for weights in snapshots.values()])
            seen[key] = _half(weights if dimensions == 4 else weights[:, : PIECE[0], : PIECE[1]])
    model, data = train.trained(config, run)
    layers = [(name, layer.noise.log_alpha(layer.theta)) for name, layer in noisy_layers(model)]
    counts = [_counts(values.detach().flatten().numpy()) for _, values in layers if values is not None]
    seen |= {"layers": np.array([name for name, _ in layers]), "log_alpha": np.stack(counts), "bins": BINS}
    errors, compressions = [], []
    for threshold in THRESHOLDS:
        with at_threshold(model, float(threshold)):
            kept = sparsity(model)
            errors.append(evaluate(model, data.test)["error"])
        compressions.append(sum(layer.weights for layer in kept) / max(1, sum(layer.nonzero for layer in kept)))
    return seen | {"error": np.array(errors), "compression": np.array(compressions)}


def save(config: Config, seen: dict[str, np.ndarray]) -> None:
    """Keep what ``watch`` saw."""
    path = file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: np.savez_compressed(stream, **seen))  # type: ignore[arg-type]


def load(config: Config) -> dict[str, np.ndarray] | None:
    """What ``save`` kept, or None."""
    path = file(config)
    if not path.exists():
        return None
    try:
        with np.load(path) as kept:
            seen = dict(kept)
        if "record" in seen:
            parse(str(seen["record"]), config.id)
    except Exception as error:  # a damaged archive can fail anywhere in zipfile, zlib or numpy
        raise UserError(f"{path} cannot be read ({error}); restore it, or delete it to look at the run anew") from None
    return seen


def _counts(values: np.ndarray) -> np.ndarray:
    """Values per bin, its upper edge included, so that alpha <= 1 ends at log alpha = 0."""
    return np.histogram(-values.clip(BINS[0], BINS[-1]), -BINS[::-1])[0][::-1]


def _half(values: Tensor) -> np.ndarray:
    return values.half().numpy()
