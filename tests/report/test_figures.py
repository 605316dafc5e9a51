"""Pictures, drawn from records."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from reporting import evidence_of, put, record

from svdo.errors import UserError
from svdo.report import evidence as evidences
from svdo.report import figures, spec
from svdo.report.spec import Figure, Row

pytest_plugins = ["report_fixtures"]


def test_a_sweep_stands_for_a_row_per_value_and_is_drawn_over_it(tmp_path: Path) -> None:
    published = {"test.error": [9.0, None], "compression": [2.0, 3.0]}
    base = ["dataset.subset=300", f"results_dir={tmp_path}"]
    sweep = Row("mlp", "Sparse VD", [*base, "model=mlp", "method=sparsevd"], parent="Original", seeds=[0, 1])
    rows = spec._expanded(replace(sweep, sweep={"model.width": [8, 16]}, published=published, source="2017"))
    assert [row.group for row in rows] == ["mlp width=8", "mlp width=16"]
    assert [row.published for row in rows] == [{"test.error": 9.0, "compression": 2.0}, {"compression": 3.0}]
    originals = spec._expanded(Row("mlp", "Original", [*base, "model=mlp", "method=none"], sweep={"model.width": [8, 16]}))
    starts = [run.parent for row in rows for run in evidences.runs(spec.Report(rows=[*originals, *rows]), row)]
    assert [(run.config.model.width, run.config.seed) for run in starts] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    collected = [(row, evidences.runs(spec.Report(), replace(row, parent=""))) for row in rows]
    assert [run.config.as_dict()["model"]["width"] for _, planned in collected for run in planned] == [8, 8, 16, 16]
    for _, planned in collected:
        put(tmp_path, {**record(planned[0].overrides, 4.0, 2.0), "sparsity": 50.0})
    for draw in ("width", "depth"):
        drawn = figures.find(draw)(evidence_of(collected, tmp_path), [])["png"]
        assert drawn.startswith(b"\x89PNG")
        assert drawn != figures.find(draw)(evidence_of(collected[:1], tmp_path), [])["png"]
    whole = record(("model=mlp", "method=none"), 2.0, 1.0)
    whole["layers"] = [{**layer, "nonzero": layer["weights"], "sparsity": 0.0} for layer in whole["layers"]]
    dense = [(replace(row, label="dense"), [evidences.Finding(whole)]) for row, _ in collected]
    assert figures.find("depth")(evidence_of(dense, tmp_path), []) == {}
    beside = figures.find("depth")(evidence_of([*collected, *dense], tmp_path), [])["png"]
    assert beside == figures.find("depth")(evidence_of(collected, tmp_path), [])["png"]  # what lost weights, alone
    assert spec._expanded(sweep) == [sweep]


def test_regularisers_are_drawn_from_what_is_measured(tmp_path: Path) -> None:
    report = spec.load("hidden_units")
    rows: evidences.Rows = []
    for row in report.rows:
        (run,) = evidences.runs(report, row, [f"results_dir={tmp_path}"])
        if row.group != "width=1250":
            put(tmp_path, record(run.overrides, 1.5, 1.0))
        rows.append((row, [run]))
    assert figures.find("regularisers")(evidence_of(rows, tmp_path), [])["png"].startswith(b"\x89PNG")


def test_a_new_figure_is_one_function_and_no_edit_elsewhere(
    small: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures.base, "FIGURES", dict(figures.FIGURES))
    report = spec.load("small")
    monkeypatch.setattr(spec, "load", lambda name: replace(report, figures=[Figure("mine", "my_errors")]))
    with pytest.raises(UserError, match="no figure is drawn by my_errors; take one of: deploy, depth, kl, "):
        figures.find("my_errors")

    @figures.figure("my_errors")
    def draw(evidence: evidences.Evidence, watched: Sequence[figures.Watched]) -> dict[str, bytes]:
        return {"txt": " ".join(row.label for row, _ in evidence.rows).encode()}

    (run,) = evidences.runs(report, report.rows[0], seeds=[0])
    put(tmp_path / "results", record(run.overrides, 2.0, 1.0))
    small("render")
    assert (tmp_path / "results" / "figures" / "mine.txt").read_text() == "dense child"
