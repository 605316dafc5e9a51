"""Additive noise against multiplicative: the gradient of theta."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import torch

from ...conversion import convert
from ...layers import noisy_layers, weight_layers
from ...math.divergence import EPS
from ...methods.sparsevd import PARAMETERIZATIONS, SparseVD
from . import estimators
from .base import Effort, Networks, measure, timed


@measure("parameterization")
def parameterization(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Variance of theta's gradient in the first layer, with one alpha for all weights of a trained dense network, by log alpha.

    Additive, sigma does not depend on theta; multiplicative, sigma = sqrt(alpha) |theta|, and its noise reaches theta. Both see
    the same minibatches and noise: ``excess``, by how many percent the second varies more, is known better than the variances.
    """
    ((dense, data),) = networks["dense"]
    first = next(name for name, _ in weight_layers(dense))
    estimates: dict[str, dict[int, list[float]]] = {name: {} for name in PARAMETERIZATIONS}
    for log_alpha, name in timed(list(itertools.product(range(-8, 5), PARAMETERIZATIONS))):
        model = convert(dense, SparseVD(parameterization=name, train_clip=False))
        with torch.no_grad():
            for _, layer in noisy_layers(model):
                sigma = layer.noise.get_parameter("log_sigma2" if name == "additive" else "raw_log_alpha")
                sigma.fill_(log_alpha)
                if name == "additive":
                    sigma.add_((layer.theta.square() + EPS).log())
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
