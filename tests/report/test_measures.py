"""Measurements, on small networks."""

import fcntl
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting import SMALL_RUN, evidence_of

from svdo import train
from svdo.cli.compose import compose
from svdo.data.known import Images
from svdo.errors import UserError
from svdo.export.c import compiler
from svdo.export.formats import Choice
from svdo.layers import noisy_layers
from svdo.report import cli, figures, measures, measuring, spec, values
from svdo.report import evidence as evidences
from svdo.report.measures import cost, deploy, estimators, uncertainty
from svdo.report.spec import Column, Row
from svdo.runs import Run


def test_a_measurement_of_networks_trains_them_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measures, "Effort", lambda: replace(measures.TOY, batches=20, separate_batches=3, size=1000))
    needed = [*SMALL_RUN, "method=vd_b", "dataset.subset=2000", "runtime.progress=false"]
    rows = [Row("", name, measured=f"{name} early") for name in ("local", "separate", "single", "none")]
    columns = [Column("top", "top"), Column("bottom", "bottom")]
    report = spec.Report("noise", "gradient_variance", {"early": needed}, "Noise", seeds=[0, 1], columns=columns, rows=rows)
    report = replace(report, overrides=["runtime.precision=bf16_variance"])
    evidence = evidences.gather(report)
    assert [run.config.seed for run in cli._missing(evidence)] == [0, 1]
    cli._run(evidence, False)
    kept = evidences.gather(report)
    assert cli._missing(kept) == []
    network, _ = train.trained(evidence.needs["early"][0].config, evidence.needs["early"][0].run)
    assert all(layer.variance_dtype is None for _, layer in noisy_layers(network))  # what it was trained in stays behind
    cells = {row.label: values.measure(items, columns[0]) for row, items in kept.rows}
    assert all(cell is not None and cell.n == 2 for cell in cells.values())
    assert cells["none"].means < cells["local"].means < cells["single"].means  # type: ignore[union-attr]
    cli._run(kept, False)
    assert capsys.readouterr().out.endswith("noise: everything is done\n")
    made = evidences.measurement_file(report, kept.results_dir)
    assert json.loads(made.read_text())["provenance"]["precision"] == "fp32"  # the networks' is another
    before = made.stat().st_mtime_ns
    capsys.readouterr()
    held = os.open(made.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # another process is at it, and this one looked before that
    late = threading.Thread(target=measuring.measure, args=[evidence])
    late.start()
    late.join(0.5)
    assert late.is_alive()
    os.close(held)
    late.join(60)
    assert capsys.readouterr().out == "another process is measuring; waiting for it to end\n"
    assert made.stat().st_mtime_ns == before
    made.unlink()
    measuring.measure(evidence)
    assert made.exists()
    told = [line.rsplit("  ", 1)[0] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert told == [f"{n}/4  early {name}" for n, name in enumerate(estimators.ESTIMATORS, 1)]
    assert evidences.gather(replace(report, needs={"early": [*needed, "train.epochs=3"]})).measured is None


def test_uncertainty_is_measured_for_three_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
    monkeypatch.setattr(
        uncertainty.sources, "load", lambda *_: Images(pixels, np.zeros(300, np.uint8), pixels, np.zeros(300, np.uint8), 10)
    )
    config = compose([*SMALL_RUN, "method=sparsevd", f"results_dir={tmp_path}", "runtime.progress=false"])
    _, record = train.execute(config)
    found = measures.find("uncertainty")({"net": [train.trained(config, Run(tmp_path, config.id))]}, tmp_path, measures.TOY)
    assert sorted(found) == ["mean net", "sampled net", "thresholded net"]
    assert {key: found["thresholded net"][0][key] for key in record["test"]} == pytest.approx(record["test"])
    assert found["mean net"][0]["nll"] != found["thresholded net"][0]["nll"] != found["sampled net"][0]["nll"]
    assert 0.0 <= found["sampled net"][0]["auroc"] <= 100.0


def test_the_original_parameterization_has_the_noisier_gradient_where_alpha_is_large(tmp_path: Path) -> None:
    config = compose([*SMALL_RUN, "dataset.subset=2000", "method=none", f"results_dir={tmp_path}", "runtime.progress=false"])
    train.execute(config)
    networks = {"dense": [train.trained(config, Run(tmp_path, config.id))]}
    seen = measures.find("parameterization")(networks, tmp_path, replace(measures.TOY, alpha_batches=30, size=1000))
    additive, multiplicative = (seen[name][0]["variance"] for name in ("additive", "multiplicative"))
    assert list(additive) == [str(at) for at in range(-8, 5)]
    assert multiplicative["-8"] == pytest.approx(additive["-8"], rel=0.02)
    assert multiplicative["4"] > 1.3 * additive["4"]
    (excess,) = seen["excess"]
    assert excess["excess"]["4"] == pytest.approx(100.0 * (multiplicative["4"] / additive["4"] - 1.0))
    # Of the same minibatches and noise: what the two share drops out of the difference's error.
    assert excess["spread"]["excess.-8"] < 0.1 * 100.0 * seen["additive"][0]["spread"]["variance.-8"] / additive["-8"]
    column = Column("variance.4", "at 4")
    cell = values.measure([evidences.Finding(seen["additive"][0])], column)
    assert cell is not None
    assert (cell.means[0], 0.0 < cell.stds[0] < cell.means[0]) == (additive["4"], True)
    rows = [(Row("", name, published={}), [evidences.Planned((), config)]) for name in ("one", "other")]
    evidence = replace(evidence_of([*rows, (Row("", "alpha", measured="additive"), [])], tmp_path), measured=seen)
    assert figures.find("parameterization")(evidence, [])["png"].startswith(b"\x89PNG")


def test_time_and_memory_of_each_estimator_are_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "COSTED", ("model=mlp", "model.width=200", "method=vd_b"))
    found = measures.find("cost")({}, Path("~/.cache/svdo"), measures.TOY)
    assert "profiler" not in capfd.readouterr().err
    assert list(found) == ["local", "separate", "single", "none"]
    assert found["local"][0]["times_local"] == 1.0
    assert all(record["epoch_seconds"] > 0.0 for (record,) in found.values())
    drawn = 10 * 784 * 200 * 4 / 2**20  # the weights of the first layer for ten examples: deviations and weights at least
    memory = {name: record["memory"] for name, (record,) in found.items()}
    assert memory["separate"] > 2 * drawn > max(memory["single"], memory["none"])
    assert min(memory.values()) > 0.0


def test_exported_networks_are_measured_in_each_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what ONNX Runtime would be compared with standing in for it: its exporter takes longer than all the rest."""
    ways = {"onnx": Choice("safetensors"), "half": Choice("sparse", compact=True, half=True)}
    ways |= {"c": Choice("c")} if compiler() else {}
    monkeypatch.setattr(deploy, "EVERY", ways)
    monkeypatch.setattr(deploy, "COMPARED", ("onnx", "half"))
    config = compose([*SMALL_RUN, "method=sparsevd", f"results_dir={tmp_path}", "runtime.progress=false"])
    _, record = train.execute(config)
    networks = {f"mlp {method}": [train.trained(config, Run(tmp_path, config.id))] for method in ("sparsevd", "pruning")}
    found = measures.find("deploy")(networks, tmp_path, measures.TOY)
    assert set(found) == {*(f"mlp sparsevd {way}" for way in (*ways, "converted")), "mlp pruning onnx", "mlp pruning half"}
    for name, (made,) in found.items():
        assert made["error"] == pytest.approx(record["test"]["error"], abs=0.5 if name.endswith("half") else 1e-3)
        assert 0.0 < made["one"]["best"] <= made["one"]["median"] and made["one"]["best"] < made["many"]["best"]
        base = found[f"{name.rpartition(' ')[0]} onnx"][0]
        assert made["many"]["times"] == pytest.approx(base["many"]["best"] / made["many"]["best"])
    half, dense = found["mlp sparsevd half"][0], found["mlp sparsevd onnx"][0]
    assert "bytes" not in found["mlp sparsevd converted"][0]
    assert half["ratio"] == dense["bytes"] / half["bytes"] > 1.5 and dense["ratio"] == 1.0
    rows = [(Row("mlp", f"Sparse VD, {name}", measured=name), [evidences.Finding(made)]) for name, (made,) in found.items()]
    assert figures.find("deploy")(evidence_of(rows, tmp_path), [])["png"].startswith(b"\x89PNG")


def test_the_declared_report_of_exports_has_a_row_for_all_that_is_measured() -> None:
    report = spec.load("deploy")
    ways = {name: [*deploy.EVERY, "converted"] if name.endswith(deploy.FULLY) else deploy.COMPARED for name in report.needs}
    assert {row.measured for row in report.rows} == {f"{name} {way}" for name, chosen in ways.items() for way in chosen}


def test_a_new_measurement_is_one_function_and_no_edit_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures.base, "MEASURES", dict(measures.MEASURES))
    rows = [Row("", "two", measured="twice")]
    report = spec.Report("mine", "my_numbers", title="Mine", columns=[Column("value", "value")], rows=rows)
    evidence = evidences.gather(report, [f"results_dir={tmp_path}"])
    with pytest.raises(UserError, match="nothing is measured by my_numbers; take one of: cost, "):
        measuring.measure(evidence)

    @measures.measure("my_numbers")
    def mine(networks: measures.Networks, data_dir: Path, effort: measures.Effort) -> dict[str, Any]:
        return {"twice": [{"value": 2.0}, {"value": 4.0}]}

    measuring.measure(evidence)
    ((_, items),) = evidences.gather(report, [f"results_dir={tmp_path}"]).rows
    assert values.measure(items, report.columns[0]) == values.Measured((3.0,), (2.0**0.5,), 2)
