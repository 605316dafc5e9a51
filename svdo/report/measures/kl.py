"""The approximations of the KL against the exact one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...math.divergence import CUBIC_CONSTANT, K1, K2, K3, cubic_kl, exact_kl, sigmoid_kl
from .base import Effort, Networks, measure


@measure("kl")
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
