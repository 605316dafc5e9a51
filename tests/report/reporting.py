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


def record(overrides: tuple[str, ...], error: float, compression: float) -> dict[str, Any]:
    config = compose(overrides)
    layers = [{"name": f"fc{i}", "weights": 100, "nonzero": 2 * i, "outputs": i, "sparsity": 100.0 - 2 * i} for i in (1, 2)]
    return {
        "schema": 1,
        "id": config.id,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "config": config.as_dict(),
        "test": {"error": error},
        "layers": layers,
        "weights": 200,
        "compression": compression,
        "epochs": config.train.epochs,
        "seconds": 60.0,
        "storage": 2.0,
        "provenance": {
            "device": "cpu (x86_64, 2 threads)",
            "threads": 2,
            "precision": "fp32",
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
