"""What tests of reports share: records written by hand, two rows of a table, a small report that is trained."""

import json
from pathlib import Path
from typing import Any

from svdo.cli.compose import compose
from svdo.config import RuntimeConfig
from svdo.report import evidence as evidences
from svdo.report import spec

SMALL_RUN = ["model=mlp", "model.width=8", "dataset.subset=400", "train.epochs=2", "train.batch_size=50"]
WATCHED = [*SMALL_RUN, "method=sparsevd"]


def record(overrides: tuple[str, ...], error: float, compression: float, weights: int = 0) -> dict[str, Any]:
    """A record as the runner writes it, of two layers that lose weights alike."""
    config = compose(overrides)
    weights = weights or round(1000 * compression)
    nonzero = round(weights / compression)
    halves = [(weights // 2, nonzero // 2), (weights - weights // 2, nonzero - nonzero // 2)]
    layers = [
        {"name": f"fc{i}", "weights": all, "nonzero": kept, "outputs": i, "sparsity": 100.0 * (1.0 - kept / all), "rate": 0.3}
        for i, (all, kept) in enumerate(halves, start=1)
    ]
    measured = {"error": error, "nll": 0.1, "ece": 1.0, "brier": 0.1}
    return {
        "schema": 1,
        "id": config.id,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "seed": config.seed,
        "config": config.as_dict(),
        "test": measured,
        "train": measured,
        "layers": layers,
        "weights": weights,
        "nonzero": nonzero,
        "sparsity": 100.0 * (1.0 - nonzero / weights),
        "compression": weights / nonzero,
        "epochs": config.train.epochs,
        "seconds": 60.0,
        "storage": 2.0,
        "provenance": {
            "commit": "",
            "device": "cpu (x86_64, 2 threads)",
            "threads": 2,
            "host_cores": 2,
            "precision": "fp32",
            "python": "3.11",
            "torch": "2.9",
            "started": "2026-01-02T03:04:05",
        },
    }


def put(folder: Path, content: dict[str, Any]) -> None:
    run = folder / "runs" / content["id"]
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(content))


def evidence_of(rows: evidences.Rows, folder: Path) -> evidences.Evidence:
    """Rows by themselves."""
    return evidences.Evidence(spec.Report(), folder, folder, RuntimeConfig(), rows, [], {}, None)


def collected(report: spec.Report, folder: Path) -> list[tuple[spec.Row, list[evidences.Planned]]]:
    return [(row, evidences.runs(report, row, [f"results_dir={folder}"])) for row in report.rows]
