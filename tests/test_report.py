"""Declared tables: planned, collected, rendered and judged from records."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from svdo.compose import compose
from svdo.config import UserError
from svdo.report import collect, render, spec
from svdo.report.spec import Column


def record(overrides: tuple[str, ...], error: float, compression: float) -> dict[str, Any]:
    config = compose(overrides)
    layers = [{"name": f"fc{i}", "weights": 100, "nonzero": 2 * i, "sparsity": 100.0 - 2 * i} for i in (1, 2)]
    return {
        "id": config.id,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "config": config.as_dict(),
        "test": {"error": error},
        "layers": layers,
        "compression": compression,
        "epochs": config.train.epochs,
        "seconds": 60.0,
    }


def put(folder: Path, content: dict[str, Any]) -> None:
    run = folder / "runs" / content["id"]
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(content))


@pytest.fixture
def report() -> spec.Report:
    """The MNIST table with three seeds."""
    report = copy.deepcopy(spec.load("mnist"))
    report.seeds = [0, 1, 2]
    return report


def collected(report: spec.Report, folder: Path) -> list[tuple[spec.Row, list[collect.Planned]]]:
    return [(row, collect.runs(report, row, [f"results_dir={folder}"])) for row in report.rows]


@pytest.mark.parametrize("name", spec.names())
def test_every_declared_report_loads_and_its_rows_compose(name: str) -> None:
    report = spec.load(name)
    for row in report.rows:
        assert row.published or row.overrides
        assert bool(row.published) == bool(row.source), f"{row.label}: a published number needs its source"
        assert len(collect.runs(report, row)) == (0 if row.overrides is None else len(report.seeds))


def test_an_unknown_report_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=f"take one of: {', '.join(spec.names())}"):
        spec.load("minst")


def test_cells_are_mean_and_spread_over_the_seeds_that_are_done(report: spec.Report, tmp_path: Path) -> None:
    for seed, error in enumerate((1.8, 2.0)):
        put(tmp_path, record(("model=lenet300", "method=sparsevd", f"seed={seed}"), error, 70.0 + 2 * seed))
    text = render.markdown(report, collected(report, tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| LeNet-300-100 | Sparse VD")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "LeNet-300-100", "Sparse VD", "1.92", "1.90 ± 0.14", "98.9 - 97.2 - 62.0", "98.0 - 96.0",
        "68", "71 ± 1", "2 of 3", "1.0",
    ]  # fmt: skip
    assert "| quoted |" in text
    assert compose(["model=lenet300", "seed=1"]).id in text
    assert text == render.markdown(report, collected(report, tmp_path))
    assert "Sparse VD,test.error,1.92,1.9,0.141421,2,reached" in render.comma_separated(report, collected(report, tmp_path))
    assert r"\toprule" in render.latex(report, collected(report, tmp_path))


@pytest.mark.parametrize(
    ("measured", "better", "word"),
    [(1.0, "lower", "reached"), (0.9, "lower", "reached"), (1.05, "lower", "close"), (1.2, "lower", "short"),
     (1.0, "higher", "reached"), (0.95, "higher", "close"), (0.8, "higher", "short"), (None, "lower", "open")],
)  # fmt: skip
def test_the_verdict_on_a_cell(measured: float | None, better: str, word: str) -> None:
    column = Column("test.error", "error", better=better, tolerance=0.1)
    cell = None if measured is None else collect.Measured((measured,), (0.0,), 1)
    assert collect.verdict(cell, column, 1.0) == word
    assert collect.verdict(cell, column, None) == ""


def test_plan_names_what_is_missing_and_its_time(svdo_run: Command, tmp_path: Path) -> None:
    def plan() -> list[str]:
        done = svdo_run("plan", "mnist", program="svdo.report.cli")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = plan()
    assert "svdo-run dataset=mnist model=lenet300 method=sparsevd seed=0   # not timed yet" in first
    assert first[-1].startswith("mnist: 0 of 4 runs done, 4 missing")
    put(tmp_path / "results", record(("model=lenet300", "method=sparsevd", "seed=5"), 1.9, 70.0))
    assert "svdo-run dataset=mnist model=lenet300 method=sparsevd seed=0   # 1.0 min" in plan()
    put(tmp_path / "results", record(("model=lenet300", "method=sparsevd", "seed=0"), 1.9, 70.0))
    last = plan()
    assert len(last) == len(first) - 1
    assert last[-1].startswith("mnist: 1 of 4 runs done, 3 missing")


def test_render_writes_three_files_and_check_judges(svdo_run: Command, tmp_path: Path) -> None:
    put(tmp_path / "results", record(("model=lenet300", "method=sparsevd", "seed=0"), 1.9, 10.0))
    assert svdo_run("render", "mnist", program="svdo.report.cli").returncode == 0
    tables = tmp_path / "results" / "tables"
    assert sorted(path.name for path in tables.iterdir()) == ["mnist.csv", "mnist.md", "mnist.tex"]
    check = svdo_run("check", "mnist", program="svdo.report.cli").stdout
    rows = [line.split() for line in check.splitlines() if "LeNet-300-100" in line and "Sparse" in line]
    assert [row[-1] for row in rows] == ["reached", "short"]


@pytest.mark.parametrize("arguments", [("plan", "nothing"), ("plan", "mnist", "metod=x"), ("dance", "mnist")])
def test_a_mistake_ends_with_status_2(svdo_run: Command, arguments: tuple[str, ...]) -> None:
    done = svdo_run(*arguments, program="svdo.report.cli")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_seed_given_for_every_run_makes_one_run_of_all_seeds(report: spec.Report) -> None:
    row = next(row for row in report.rows if row.overrides)
    assert len(collect.runs(report, row)) == 3
    assert len(collect.runs(report, row, ["seed=7"])) == 1


def test_a_damaged_record_of_another_run_does_not_stop_a_plan(tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "result.json").write_text('{"id": 1')
    assert collect.expected_seconds(compose([f"results_dir={tmp_path}"])) is None


def test_a_figure_is_judged_at_the_digits_that_are_shown() -> None:
    column = Column("test.error", "error", format=".2f", better="lower")
    assert collect.verdict(collect.Measured((1.924,), (0.0,), 1), column, 1.92) == "reached"
    assert collect.verdict(collect.Measured((1.926,), (0.0,), 1), column, 1.92) == "short"
