"""What a table rests on: its runs, their parents, their seeds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from reporting import SMALL_RUN, put, record

from svdo.errors import UserError
from svdo.report import evidence as evidences
from svdo.report import records, spec
from svdo.report.spec import Row
from svdo.runs import Run
from svdo.runs.checkpoint import write_atomically

pytest_plugins = ["report_fixtures"]


def test_a_run_is_planned_after_all_that_it_starts_from(tmp_path: Path) -> None:
    base = [*SMALL_RUN, f"results_dir={tmp_path}"]
    rows = [
        Row("net", "Original", [*base, "method=none"]),
        Row("net", "Longer", [*base, "method=none", "train.epochs=2"], parent="Original"),
        Row("net", "Sparse VD", [*base, "method=sparsevd"], parent="Longer", seeds=[1, 0]),
    ]
    chained = spec.Report("chained", rows=rows)
    first, second = evidences.runs(chained, rows[2])
    assert first.config.pretrained == first.parent.config.id
    assert first.parent.config.pretrained == first.parent.parent.config.id
    assert [(run.config.method.name, run.config.seed) for run in evidences.missing([first])] == [
        ("none", 1),
        ("none", 1),
        ("sparsevd", 1),
    ]
    assert evidences.missing([first, second])[3:] == [second.parent.parent, second.parent, second]
    with pytest.raises(UserError, match=r"report/chained\.yaml: Longer: no row above it in net is called Original"):
        evidences.runs(replace(chained, rows=rows[1:]), rows[1])


def test_a_seed_given_for_every_run_makes_one_run_of_all_seeds(report: spec.Report) -> None:
    row = next(row for row in report.rows if row.overrides)
    assert len(evidences.runs(report, row)) == 3
    assert len(evidences.runs(report, row, ["seed=7"])) == 1


def test_a_forced_seed_is_the_only_one(report: spec.Report) -> None:
    assert [run.config.seed for run in evidences.runs(report, report.rows[1], ["++seed=7"])] == [7]


def test_uncertainty_is_that_of_networks_in_the_mnist_table() -> None:
    shown = {run.config.id for run in evidences.gather(spec.load("mnist")).runs}
    needed = {run.config.id for runs in evidences.gather(spec.load("uncertainty")).needs.values() for run in runs}
    assert needed <= shown


def test_a_record_is_read_once_and_again_where_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record((*SMALL_RUN, "method=none"), 2.0, 1.0)
    put(tmp_path, made)
    run, reads = Run(tmp_path, made["id"]), []
    real = Run.result
    monkeypatch.setattr(Run, "result", lambda self: reads.append(self.id) or real(self))
    assert records.read(run) == records.read(run) == records.finished(tmp_path)[0] == made
    assert reads == [made["id"]]
    write_atomically(run.record, lambda file: file.write(json.dumps({**made, "test": {**made["test"], "error": 3.0}}).encode()))
    assert records.read(run)["test"]["error"] == 3.0
    run.record.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        records.read(run)
    with pytest.warns(match="result.json cannot be read"):
        assert records.finished(tmp_path) == []
    run.record.unlink()
    assert records.read(run) is None
