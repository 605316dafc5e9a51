"""Cells: mean and spread, how they are written, how far they are from what was published."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from reporting import collected, put, record

from svdo.cli.compose import compose
from svdo.report import evidence as evidences
from svdo.report import render, spec, values
from svdo.report.distances import distance
from svdo.report.spec import Column

pytest_plugins = ["report_fixtures"]


def test_cells_are_mean_and_spread_over_the_seeds_that_are_done(report: spec.Report, tmp_path: Path) -> None:
    for seed, error in enumerate((1.8, 2.0)):
        put(tmp_path, record(("model=lenet300", "method=sparsevd", f"seed={seed}"), error, 70.0 + 2 * seed))
    text = render.markdown(report, collected(report, tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| LeNet-300-100 | Sparse VD")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "LeNet-300-100", "Sparse VD", "1.92", "1.90 ± 0.14", "98.9 - 97.2 - 62.0", "98.6 - 98.6",
        "68", "71.0 ± 1.4", "2.0 ± 0.0", "2 of 3", "2.0",
    ]  # fmt: skip
    assert "| quoted |" in text
    assert compose(["model=lenet300", "seed=1"]).id in text
    assert "- LeNet-300-100, Sparse VD: a remark" in text
    (made,) = re.findall(r"`[^`]*-s1-\w+`, by `(svdo-run .*)`\n", text)
    assert compose(shlex.split(made)[1:]).id == compose(["model=lenet300", "seed=0"]).id
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
    cell = None if measured is None else values.Measured((measured,), (0.0,), 1)
    assert distance(cell, column, 1.0) == word
    assert distance(cell, column, None) == ""


def test_a_ratio_published_as_a_whole_number_is_compared_as_one() -> None:
    column = Column("compression", "compression", format=".1f", better="higher", tolerance=0.1)
    ratios = [values.Measured((ratio,), (0.0,), 1) for ratio in (67.6, 67.4)]
    assert [distance(ratio, column, 68) for ratio in ratios] == ["reached", "close"]


def test_a_figure_is_judged_at_the_digits_that_are_shown() -> None:
    column = Column("test.error", "error", format=".2f", better="lower")
    assert distance(values.Measured((1.924,), (0.0,), 1), column, 1.92) == "reached"
    assert distance(values.Measured((1.926,), (0.0,), 1), column, 1.92) == "short"
    ratio = Column("compression", "compression", better="higher")
    for empty in (math.inf, math.nan):  # no weights left, in all or in some runs
        assert distance(values.Measured((empty,), (0.0,), 1), ratio, 68) == "short"


def test_what_an_old_record_lacks_is_not_counted_and_what_is_undefined_is_said() -> None:
    def cell(*records: dict[str, Any]) -> values.Measured | None:
        return values.measure([evidences.Finding(item) for item in records], Column("compression", "compression"))

    assert cell({"compression": 4.0}, {}, {"compression": 2.0}) == values.Measured((3.0,), (2.0**0.5,), 2)
    assert cell({}) is None
    column = Column("compression", "compression", better="higher")
    emptied, in_part = cell({"compression": None}, {"compression": None}), cell({"compression": 4.0}, {"compression": None})
    assert render.measured_text(emptied, column) == "no weights left"
    assert distance(emptied, column, 4.0) == "short"  # of a network that knows nothing
    assert render.measured_text(in_part, column) == "no weights left in some runs"
    assert distance(in_part, column, 4.0) == "short"


def test_a_single_outcome_of_a_measurement_has_the_spread_that_it_knows() -> None:
    column = Column("top", "top", format=".0f")
    found = values.measure([evidences.Finding({"top": 100.0, "error": 2.0, "spread": {"top": 7.0}})], column)
    assert found == values.Measured((100.0,), (7.0,), 1)
    assert render.measured_text(found, column) == "100 ± 7"
    several = [evidences.Finding({"top": value, "spread": {"top": 7.0}}) for value in (1.0, 3.0)]
    assert values.measure(several, column) == values.Measured((2.0,), (2.0**0.5,), 2)
    assert render.measured_text(values.measure([evidences.Finding({"top": 100.0})], column), column) == "100"


def test_core_minutes_keep_devices_apart() -> None:
    cpu = {"seconds": 60.0, "provenance": {"device": "cpu (x86_64, 2 threads)", "threads": 2}}
    gpu = {"seconds": 30.0, "provenance": {"device": "NVIDIA", "threads": 8}}
    assert render.core_minutes([cpu, gpu]) == "2.0, 0.5 on a GPU"
    assert render.core_minutes([{**cpu, "core_seconds": 90.0}, gpu]) == "1.5, 0.5 on a GPU"
    assert render.core_minutes([]) == ""


def test_layers_and_accuracies_are_columns() -> None:
    items = [evidences.Finding({"layers": [{"rate": 0.2}, {"rate": 0.5}], "train": {"error": 97.5}})]
    assert values.measure(items, Column("layers.rate")) == values.Measured((0.2, 0.5), (0.0, 0.0), 1)
    assert values.measure(items, Column("train.accuracy")) == values.Measured((2.5,), (0.0,), 1)
    assert values.measure([evidences.Finding({"layers": [{"rate": None}]})], Column("layers.rate")) is None


@pytest.mark.parametrize("name", spec.names())
def test_committed_tables_are_what_committed_records_render_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    tables = Path("results/tables")
    if not (tables / f"{name}.md").exists():
        pytest.skip("nothing of it is measured yet")
    evidence = evidences.gather(spec.load(name))
    assert (tables / f"{name}.md").read_text("utf-8") == render.markdown(evidence.report, evidence.rows)
    assert (tables / f"{name}.tex").read_text("utf-8") == render.latex(evidence.report, evidence.rows)
    assert (tables / f"{name}.csv").read_text("utf-8") == render.comma_separated(evidence.report, evidence.rows)
