"""How much the gradient varies under each estimator."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from torch import nn

from ...data import Data
from ...layers import weight_layers
from ...tasks.classification import evaluate
from . import estimators
from .base import Effort, Networks, measure, timed


@measure("gradient_variance")
def gradient_variance(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Each estimator's gradient variance in the first (bottom) and the last (top) layer of each network; a record per seed."""
    found: dict[str, Any] = {}
    parts = list(itertools.product(networks, estimators.ESTIMATORS))
    for name, estimator in timed(parts):
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
