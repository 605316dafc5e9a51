"""What no run's record holds, measured once for a report and kept as ``results/measured/NAME.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import machine
from ..checkpoint import write_atomically
from ..config import RuntimeConfig, UserError
from ..divergence import CUBIC_CONSTANT, cubic_kl, exact_kl, sigmoid_kl
from .collect import measurement
from .spec import Report


def measure(report: Report, results_dir: Path) -> None:
    """Run the report's measurement and keep it: by row, records like those of runs, and what its figures show."""
    print(f"\n=== measuring {report.measure}", flush=True)
    started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    try:
        found = MEASURES[report.measure]()
    except ImportError as error:
        raise UserError(f"measuring {report.measure} needs more: {error}; pip install 'svdo[plot]'") from None
    seconds = round(time.perf_counter() - clock, 3)
    provenance = machine.provenance(RuntimeConfig(), torch.device("cpu"), started)
    for row in {row.measured for row in report.rows if row.measured}:
        found[row] = [
            {"id": f"{report.name}/{row}", **record, "seconds": seconds, "provenance": provenance} for record in found[row]
        ]
    path = measurement(report, results_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def kl() -> dict[str, Any]:
    """The approximations of the KL against the exact one over log alpha in [-10, 10], and the sigmoid fitted anew."""
    from scipy.optimize import curve_fit

    grid = np.linspace(-10.0, 10.0, 1001)
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
    found: dict[str, Any] = {
        name: [
            {
                "deviation": float(np.nanmax(np.abs(values - exact))),
                "slope": float(np.nanmax(np.abs(np.gradient(values - exact, grid)))),
            }
        ]
        for name, values in curves.items()
    }
    found["refitted"][0]["constants"] = [float(k) for k in fitted]
    shown = {name: [None if np.isnan(v) else round(float(v), 6) for v in values[::5]] for name, values in curves.items()}
    return found | {"curves": {"log_alpha": grid[::5].round(3).tolist(), "exact": exact[::5].round(6).tolist(), **shown}}


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {"kl": kl}
