"""Declared tables: planned, collected, rendered and judged from records."""

import contextlib
import fcntl
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from svdo import estimators, train
from svdo.cli.compose import compose
from svdo.config import Config, RuntimeConfig
from svdo.data.sources import Images, UnavailableError
from svdo.errors import UserError
from svdo.layers import noisy_layers
from svdo.report import cli, collect, figures, index, measures, render, spec, watch
from svdo.report.spec import Column, Figure, Row
from svdo.runs import Run, finished


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


def evidence_of(rows: collect.Rows, folder: Path) -> collect.Evidence:
    """Rows by themselves."""
    return collect.Evidence(spec.Report(), folder, folder, RuntimeConfig(), rows, [], {}, None)


@pytest.fixture
def report() -> spec.Report:
    """Two rows of the MNIST table, one of them quoted only."""
    columns = spec.load("mnist").columns
    published = {"test.error": 1.92, "layers.sparsity": [98.9, 97.2, 62.0], "compression": 68}
    measured = Row(
        "LeNet-300-100", "Sparse VD", ["model=lenet300", "method=sparsevd"], published=published, source="2017", note="a remark"
    )
    quoted = Row("LeNet-300-100", "SWS", published={"test.error": 1.94}, source="2017")
    return spec.Report("mini", title="Mini", seeds=[0, 1, 2], columns=columns, rows=[quoted, measured])


def collected(report: spec.Report, folder: Path) -> list[tuple[spec.Row, list[collect.Planned]]]:
    return [(row, collect.runs(report, row, [f"results_dir={folder}"])) for row in report.rows]


@pytest.mark.parametrize("name", spec.names())
def test_every_declared_report_loads_and_its_rows_compose(name: str) -> None:
    report = spec.load(name)
    for row in report.rows:
        assert row.published or row.overrides or row.measured
        assert bool(row.published) == bool(row.source), f"{row.label}: a published number needs its source"
        seeds = report.seeds if row.seeds is None else row.seeds
        planned = collect.runs(report, row)
        assert len(planned) == (0 if row.overrides is None else len(seeds))
        assert all(run.config.pretrained == (run.parent.config.id if run.parent else "") for run in planned)
    for figure in report.figures:
        assert figure.draw in figures.DRAW
        assert len(collect.watched(report, figure)) == len(figure.runs)


def test_a_run_is_planned_after_all_that_it_starts_from(tmp_path: Path) -> None:
    base = [*SMALL_RUN, f"results_dir={tmp_path}"]
    rows = [
        Row("net", "Original", [*base, "method=none"]),
        Row("net", "Longer", [*base, "method=none", "train.epochs=2"], parent="Original"),
        Row("net", "Sparse VD", [*base, "method=sparsevd"], parent="Longer", seeds=[1, 0]),
    ]
    chained = spec.Report("chained", rows=rows)
    first, second = collect.runs(chained, rows[2])
    assert first.config.pretrained == first.parent.config.id
    assert first.parent.config.pretrained == first.parent.parent.config.id
    assert [(run.config.method.name, run.config.seed) for run in collect.missing([first])] == [
        ("none", 1),
        ("none", 1),
        ("sparsevd", 1),
    ]
    assert collect.missing([first, second])[3:] == [second.parent.parent, second.parent, second]
    with pytest.raises(UserError, match=r"report/chained\.yaml: Longer: no row above it in net is called Original"):
        collect.runs(replace(chained, rows=rows[1:]), rows[1])


@pytest.mark.parametrize("name", spec.names())
def test_the_rows_of_a_network_stand_together(name: str) -> None:
    rows = spec.load(name).rows
    groups = [row.group for row in rows]
    assert sum(one != other for one, other in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert [row.label for row in rows if row.group == groups[0]] == list(dict.fromkeys(row.label for row in rows))[
        : groups.count(groups[0])
    ]


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
    cell = None if measured is None else collect.Measured((measured,), (0.0,), 1)
    assert collect.verdict(cell, column, 1.0) == word
    assert collect.verdict(cell, column, None) == ""


def test_a_ratio_published_as_a_whole_number_is_compared_as_one() -> None:
    column = Column("compression", "compression", format=".1f", better="higher", tolerance=0.1)
    ratios = [collect.Measured((ratio,), (0.0,), 1) for ratio in (67.6, 67.4)]
    assert [collect.verdict(ratio, column, 68) for ratio in ratios] == ["reached", "close"]


def test_plan_names_what_is_missing_and_its_time(svdo_run: Command, tmp_path: Path) -> None:
    def plan() -> list[str]:
        done = svdo_run("plan", "fast", program="svdo.report.cli")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run = ("model=lenet300", "method=sparsevd", "train=fast")
    first = plan()
    line = "svdo-run dataset=mnist method=sparsevd train=fast model=lenet300 seed=0"
    assert f"{line}   # not timed yet" in first
    assert first[-1] == "fast: 0 of 8 runs done, 8 missing, not timed yet"
    put(tmp_path / "results", record((*run, "seed=5"), 1.9, 70.0))
    assert f"{line}   # 1.0 min" in plan()
    put(tmp_path / "results", record((*run, "seed=0"), 1.9, 70.0))
    last = plan()
    assert not any(text.startswith(line) for text in last)
    assert last[-1] == "fast: 1 of 8 runs done, 7 missing, about 4.0 min, some not timed yet"


def test_render_writes_three_files_and_check_judges(svdo_run: Command, tmp_path: Path) -> None:
    put(tmp_path / "results", record(("model=lenet300", "method=sparsevd", "train=fast", "seed=0"), 1.9, 10.0))
    assert svdo_run("render", "fast", program="svdo.report.cli").returncode == 0
    tables = tmp_path / "results" / "tables"
    assert sorted(path.name for path in tables.iterdir()) == ["fast.csv", "fast.md", "fast.tex"]
    check = svdo_run("check", "fast", program="svdo.report.cli").stdout
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


def test_a_damaged_record_of_another_run_does_not_stop_a_plan_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "result.json").write_text('{"id": 1')
    with pytest.warns(match=r"other/result\.json cannot be read"):
        assert collect.expected_seconds(compose([]), list(finished(tmp_path))) is None


def test_a_figure_is_judged_at_the_digits_that_are_shown() -> None:
    column = Column("test.error", "error", format=".2f", better="lower")
    assert collect.verdict(collect.Measured((1.924,), (0.0,), 1), column, 1.92) == "reached"
    assert collect.verdict(collect.Measured((1.926,), (0.0,), 1), column, 1.92) == "short"
    ratio = Column("compression", "compression", better="higher")
    for empty in (math.inf, math.nan):  # no weights left, in all or in some runs
        assert collect.verdict(collect.Measured((empty,), (0.0,), 1), ratio, 68) == "short"


def test_a_width_that_was_never_trained_is_timed_by_its_weights(tmp_path: Path) -> None:
    old = record(("model=mlp", "model.width=100", "method=none"), 1.0, 1.0, weights=99_400)
    del old["config"]["dataset"]["test_subset"], old["config"]["model"]["start_std"]  # settings that it does not know
    put(tmp_path, old)
    seconds = [
        collect.expected_seconds(compose(["model=mlp", f"model.width={width}", "method=binary"]), list(finished(tmp_path)))
        for width in (100, 200)
    ]
    assert seconds == [60.0, pytest.approx(60.0 * (784 * 200 + 2 * 200**2 + 2000) / 99_400)]
    assert collect.expected_seconds(compose(["model=mlp", "method=binary"]), list(finished(tmp_path)), "cuda") is None
    sparse = record(("model=mlp", "model.width=50", "method=sparsevd", "train.epochs=1"), 1.0, 1.0, weights=44_700)
    put(tmp_path, sparse | {"seconds": 200.0})
    wanted = compose(["model=mlp", "model.width=100", "method=sparsevd", "train.epochs=1"])
    assert collect.expected_seconds(wanted, list(finished(tmp_path))) == pytest.approx(200.0 * 99_400 / 44_700)  # by its method


SMALL_RUN = ["model=mlp", "model.width=8", "dataset.subset=400", "train.epochs=2", "train.batch_size=50"]
WATCHED = [*SMALL_RUN, "method=sparsevd"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """``svdo-report VERB small`` in this process: a dense row, one that starts from it, and figures of another run."""
    monkeypatch.chdir(tmp_path)
    dense, sparse = [*SMALL_RUN, "method=none"], [*SMALL_RUN, "method=sparsevd", "method.log_sigma2=-8"]
    report = spec.Report(
        "small",
        title="Small",
        overrides=["runtime.progress=false"],
        seeds=[0, 1],
        columns=[Column("test.error", "error"), Column("compression", "compression", better="higher")],
        rows=[Row("net", "dense", dense), Row("net", "child", sparse, parent="dense", seeds=[1])],
        figures=[Figure("seen", "log_alpha", [WATCHED]), Figure("steps", "training", [WATCHED])],
    )
    monkeypatch.setattr(spec, "load", lambda name: report)
    monkeypatch.setattr(spec, "names", lambda: ["mnist"])

    def call(verb: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["svdo-report", verb, "mnist"])
        cli.main()
        return capsys.readouterr().out

    return call


def test_a_report_trains_parents_first_watches_and_draws(small: Callable[[str], str], tmp_path: Path) -> None:
    parents = [compose([*SMALL_RUN, "method=none", f"seed={seed}"]).id for seed in (0, 1)]
    child = compose([*SMALL_RUN, "method=sparsevd", "method.log_sigma2=-8", "seed=1", f"pretrained={parents[1]}"]).id
    plan = small("plan").splitlines()
    assert all("method=none" in line and f"seed={seed}" in line for seed, line in enumerate(plan[:2]))
    assert f"pretrained={parents[1]}" in plan[2]
    assert "runtime.snapshots=1" in plan[3]
    assert plan[-1].startswith("small: 0 of 3 runs done, 3 missing")

    small("run")
    runs = tmp_path / "results" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == sorted([*parents, child, compose(WATCHED).id])
    assert small("run") == "small: everything is done\n"
    small("render")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "results" / "figures").glob("*.png")}
    assert sorted(drawn) == ["seen.png", "steps.png"]
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    tables = {path.name: path.read_bytes() for path in (tmp_path / "results" / "tables").iterdir()}

    # As in a fresh clone: records and what was seen are there, weights are not. Everything renders to the same bytes.
    for path in runs.glob("*/*.pt"):
        path.unlink()
    assert small("plan").splitlines() == ["small: 3 of 3 runs done, 0 missing"]
    small("render")
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "figures").glob("*.png")} == drawn
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "tables").iterdir()} == tables

    # A child that is to be trained again needs its parent's weights, which does not touch the parent's record.
    before = (runs / parents[1] / "result.json").read_bytes()
    first = json.loads((runs / child / "result.json").read_text())
    (runs / child / "result.json").unlink()
    plan = small("plan").splitlines()
    assert "results_dir=results/rebuilt" in plan[0]
    assert f"pretrained={parents[1]}" in plan[1]
    assert plan[2].startswith("small: 2 of 3 runs done, 1 missing, 1 to train again for weights that are not kept")
    small("run")
    assert json.loads((runs / child / "result.json").read_text())["test"] == first["test"]
    assert (runs / parents[1] / "result.json").read_bytes() == before

    # ... and if the weights in results/rebuilt go, too, they are trained once more, from where that had come.
    again = Run(tmp_path / "results" / "rebuilt", parents[1])
    again.weights.unlink()
    (runs / child / "result.json").unlink()
    record = again.record.read_bytes()
    again.record.unlink()
    store = f"results_dir={tmp_path / 'results' / 'rebuilt'}"
    config = compose([*SMALL_RUN, "method=none", "seed=1", "runtime.progress=false", store])
    with pytest.raises(train.Interrupted):
        train.Training(config, again, train.Stop(number=15)).finish()
    assert "resuming at epoch 1, step 2" in small("run")
    again.weights.unlink()
    again.record.write_bytes(record)
    (runs / child / "result.json").unlink()
    small("run")
    assert json.loads((runs / child / "result.json").read_text())["test"] == first["test"]


def test_a_closer_look_sees_what_a_run_left(small: Callable[[str], str], tmp_path: Path) -> None:
    small("run")
    config = compose(WATCHED)
    seen = watch.load(config)
    assert seen is not None
    record = Run(config.results_dir, config.id).result()
    assert record is not None
    at_three = seen["thresholds"].tolist().index(3.0)
    assert seen["error"][at_three] == pytest.approx(record["test"]["error"])
    assert seen["compression"][at_three] == pytest.approx(record["compression"])
    assert (seen["compression"][1:] <= seen["compression"][:-1]).all()
    assert seen["log_alpha"].sum(1).tolist() == [layer["weights"] for layer in record["layers"]]
    assert seen["epochs"].tolist() == [1, 2]
    assert seen["piece"].shape == (2, 8, 200)


def test_processes_that_run_one_report_share_the_work(small: Callable[[str], str], tmp_path: Path) -> None:
    first, second = [collect.Planned((), compose([*SMALL_RUN, "method=none", f"seed={seed}"])) for seed in (0, 1)]
    with second.run.open(waiting=print):  # another process is at the child's parent
        assert second.run.busy()
        assert not first.run.busy()
        left = cli._missing(evidence_of([(Row("net", "all"), [second, first])], tmp_path))
        assert [run.config.id for run in left] == [second.config.id, first.config.id]
        assert cli._next(left).config.id == first.config.id
        assert cli._next(left[:1]).config.id == second.config.id
    small("run")
    assert not second.run.busy()


def test_without_matplotlib_tables_are_rendered_and_figures_named(
    small: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "figure seen stays as it is: svdo-report run has not looked at" in small("render")
    small("run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install '.[plot]' draws it" in small("render")
    assert (tmp_path / "results" / "tables" / "small.md").exists()
    assert not list((tmp_path / "results" / "figures").glob("*.png"))


def test_a_sweep_stands_for_a_row_per_value_and_is_drawn_over_it(tmp_path: Path) -> None:
    published = {"test.error": [9.0, None], "compression": [2.0, 3.0]}
    base = ["dataset.subset=300", f"results_dir={tmp_path}"]
    sweep = Row("mlp", "Sparse VD", [*base, "model=mlp", "method=sparsevd"], parent="Original", seeds=[0, 1])
    rows = spec._expanded(replace(sweep, sweep={"model.width": [8, 16]}, published=published, source="2017"))
    assert [row.group for row in rows] == ["mlp width=8", "mlp width=16"]
    assert [row.published for row in rows] == [{"test.error": 9.0, "compression": 2.0}, {"compression": 3.0}]
    originals = spec._expanded(Row("mlp", "Original", [*base, "model=mlp", "method=none"], sweep={"model.width": [8, 16]}))
    starts = [run.parent for row in rows for run in collect.runs(spec.Report(rows=[*originals, *rows]), row)]
    assert [(run.config.model.width, run.config.seed) for run in starts] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    collected = [(row, collect.runs(spec.Report(), replace(row, parent=""))) for row in rows]
    assert [run.config.as_dict()["model"]["width"] for _, planned in collected for run in planned] == [8, 8, 16, 16]
    for _, planned in collected:
        put(tmp_path, record(planned[0].overrides, 4.0, 2.0))
    for draw in ("width", "depth"):
        drawn = figures.DRAW[draw](evidence_of(collected, tmp_path), [])["png"]
        assert drawn.startswith(b"\x89PNG")
        assert drawn != figures.DRAW[draw](evidence_of(collected[:1], tmp_path), [])["png"]
    whole = record(("model=mlp", "method=none"), 2.0, 1.0)
    whole["layers"] = [{**layer, "nonzero": layer["weights"], "sparsity": 0.0} for layer in whole["layers"]]
    dense = [(replace(row, label="dense"), [collect.Finding(whole)]) for row, _ in collected]
    assert figures.DRAW["depth"](evidence_of(dense, tmp_path), []) == {}
    beside = figures.DRAW["depth"](evidence_of([*collected, *dense], tmp_path), [])["png"]
    assert beside == figures.DRAW["depth"](evidence_of(collected, tmp_path), [])["png"]  # what lost weights, alone
    assert spec._expanded(sweep) == [sweep]


def test_a_measurement_is_made_once_kept_and_rendered(svdo_run: Command, tmp_path: Path) -> None:
    def report(verb: str) -> str:
        done = svdo_run(verb, "kl", program="svdo.report.cli")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "figure kl stays as it is: svdo-report run has not measured kl yet" in report("render")
    assert report("plan").splitlines()[-1] == "kl: the measurement is missing"
    report("run")
    kept = tmp_path / "results" / "measured" / "kl.json"
    before = kept.read_bytes()
    assert report("run") == "kl: everything is done\n"
    assert kept.read_bytes() == before
    found = json.loads(before)
    assert found["sigmoid"][0]["deviation"] == pytest.approx(0.0094, abs=1e-4)
    assert found["cubic"][0]["deviation"] == pytest.approx(0.040, abs=1e-3)
    assert found["refitted"][0]["deviation"] < found["sigmoid"][0]["deviation"]
    assert found["refitted"][0]["constants"] == pytest.approx([0.6358, 1.873, 1.487], rel=0.02)
    table = report("render")
    assert "0.009" in table
    assert (tmp_path / "results" / "figures" / "kl.png").exists()
    assert report("check").count("reached") == 2
    kept.write_text("{")
    assert svdo_run("plan", "kl", program="svdo.report.cli").returncode == 2


def test_a_table_or_measurement_that_is_not_the_declared_one_goes_elsewhere(svdo_run: Command, tmp_path: Path) -> None:
    refused = svdo_run("render", "fast", "+seed=7", program="svdo.report.cli")
    assert refused.returncode == 2
    assert "say where it goes with results_dir=..." in refused.stderr
    for same in (["seed=3", "results_dir=results"], ["seed=3", "results_dir=./results/"]):
        with pytest.raises(UserError, match="seed makes another table"):
            cli._refuse_to_mix(same)
    cli._refuse_to_mix(["seed=3", "results_dir=elsewhere"])
    assert not (tmp_path / "results").exists()
    assert svdo_run("render", "fast", "seed=7", "results_dir=other", program="svdo.report.cli").returncode == 0
    assert (tmp_path / "other" / "tables" / "fast.md").exists()
    assert svdo_run("run", "variance", "train.epochs=1", program="svdo.report.cli").returncode == 2
    assert not (tmp_path / "results").exists()


def test_a_forced_seed_is_the_only_one(report: spec.Report) -> None:
    assert [run.config.seed for run in collect.runs(report, report.rows[1], ["++seed=7"])] == [7]


def test_what_an_old_record_lacks_is_not_counted_and_what_is_undefined_is_said() -> None:
    def cell(*records: dict[str, Any]) -> collect.Measured | None:
        return collect.measure([collect.Finding(item) for item in records], Column("compression", "compression"))

    assert cell({"compression": 4.0}, {}, {"compression": 2.0}) == collect.Measured((3.0,), (2.0**0.5,), 2)
    assert cell({}) is None
    column = Column("compression", "compression", better="higher")
    emptied, in_part = cell({"compression": None}, {"compression": None}), cell({"compression": 4.0}, {"compression": None})
    assert render.measured_text(emptied, column) == "no weights left"
    assert collect.verdict(emptied, column, 4.0) == "short"  # of a network that knows nothing
    assert render.measured_text(in_part, column) == "no weights left in some runs"
    assert collect.verdict(in_part, column, 4.0) == "short"


def test_a_single_outcome_of_a_measurement_has_the_spread_that_it_knows() -> None:
    column = Column("top", "top", format=".0f")
    found = collect.measure([collect.Finding({"top": 100.0, "error": 2.0, "spread": {"top": 7.0}})], column)
    assert found == collect.Measured((100.0,), (7.0,), 1)
    assert render.measured_text(found, column) == "100 ± 7"
    several = [collect.Finding({"top": value, "spread": {"top": 7.0}}) for value in (1.0, 3.0)]
    assert collect.measure(several, column) == collect.Measured((2.0,), (2.0**0.5,), 2)
    assert render.measured_text(collect.measure([collect.Finding({"top": 100.0})], column), column) == "100"


def test_core_minutes_keep_devices_apart() -> None:
    cpu = {"seconds": 60.0, "provenance": {"device": "cpu (x86_64, 2 threads)", "threads": 2}}
    gpu = {"seconds": 30.0, "provenance": {"device": "NVIDIA", "threads": 8}}
    assert render.core_minutes([cpu, gpu]) == "2.0, 0.5 on a GPU"
    assert render.core_minutes([{**cpu, "core_seconds": 90.0}, gpu]) == "1.5, 0.5 on a GPU"
    assert render.core_minutes([]) == ""


def test_one_failure_does_not_end_a_report(
    small: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = train.execute

    def execute(config: Config) -> Any:
        if config.method.name == "none" and config.seed == 0:
            (tmp_path / "results" / "runs" / config.id).mkdir(parents=True)
            raise RuntimeError("out of memory")
        return real(config)

    monkeypatch.setattr(train, "execute", execute)
    with pytest.raises(SystemExit) as stop:
        small("run")
    assert stop.value.code == 1
    output = capsys.readouterr().out
    assert "out of memory (traceback: " in output
    assert len(list((tmp_path / "results" / "runs").glob("*/result.json"))) == 3


def test_runs_whose_data_cannot_be_had_are_left_out_with_one_note(
    small: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def load(name: str, *_: Any) -> Images:
        asked.append(name)
        raise UnavailableError("mnist could not be fetched: no network")

    monkeypatch.setattr(train, "load", load)
    with pytest.raises(SystemExit) as stop:
        small("run")
    assert stop.value.code == 1
    assert asked == ["mnist"]
    assert capsys.readouterr().err == "svdo: all runs on mnist are left out: mnist could not be fetched: no network\n"
    assert "are not shown: net, dense; net, child." in small("render")
    assert "0 of" not in (tmp_path / "results" / "tables" / "small.md").read_text()


def test_a_figure_waits_for_every_snapshot_and_replaces_a_copy_without(small: Callable[[str], str], tmp_path: Path) -> None:
    small("run")
    config = compose(WATCHED)
    watch.file(config).unlink()
    (Run(tmp_path / "results", config.id).snapshot(1)).unlink()
    assert watch.source(collect.Planned((), config)) is None
    (tmp_path / "results" / "rebuilt" / "runs").mkdir(parents=True)
    shutil.copytree(Run(tmp_path / "results", config.id).folder, tmp_path / "results" / "rebuilt" / "runs" / config.id)
    small("run")
    seen = watch.load(config)
    assert seen is not None
    assert seen["epochs"].tolist() == [1, 2]
    watch.file(config).write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        watch.load(config)


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
    evidence = collect.gather(report)
    assert [run.config.seed for run in cli._missing(evidence)] == [0, 1]
    cli._run(evidence, False)
    kept = collect.gather(report)
    assert cli._missing(kept) == []
    network, _ = measures.train.trained(evidence.needs["early"][0].config, evidence.needs["early"][0].run)
    assert all(layer.variance_dtype is None for _, layer in noisy_layers(network))  # what it was trained in stays behind
    cells = {row.label: collect.measure(items, columns[0]) for row, items in kept.rows}
    assert all(cell is not None and cell.n == 2 for cell in cells.values())
    assert cells["none"].means < cells["local"].means < cells["single"].means  # type: ignore[union-attr]
    cli._run(kept, False)
    assert capsys.readouterr().out.endswith("noise: everything is done\n")
    made = collect.measurement_file(report, kept.results_dir)
    assert json.loads(made.read_text())["provenance"]["precision"] == "fp32"  # the networks' is another
    before = made.stat().st_mtime_ns
    capsys.readouterr()
    measuring = os.open(made.parent, os.O_RDONLY)
    fcntl.flock(measuring, fcntl.LOCK_EX)  # another process is at it, and this one looked before that
    late = threading.Thread(target=measures.measure, args=[evidence])
    late.start()
    late.join(0.5)
    assert late.is_alive()
    os.close(measuring)
    late.join(60)
    assert capsys.readouterr().out == "another process is measuring; waiting for it to end\n"
    assert made.stat().st_mtime_ns == before
    made.unlink()
    measures.measure(evidence)
    assert made.exists()
    told = [line.rsplit("  ", 1)[0] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert told == [f"{n}/4  early {name}" for n, name in enumerate(estimators.ESTIMATORS, 1)]
    assert collect.gather(replace(report, needs={"early": [*needed, "train.epochs=3"]})).measured is None


def test_uncertainty_is_measured_for_three_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
    monkeypatch.setattr(
        measures.sources, "load", lambda *_: Images(pixels, np.zeros(300, np.uint8), pixels, np.zeros(300, np.uint8), 10)
    )
    config = compose([*SMALL_RUN, "method=sparsevd", f"results_dir={tmp_path}", "runtime.progress=false"])
    _, record = train.execute(config)
    found = measures.uncertainty({"net": [train.trained(config, Run(tmp_path, config.id))]}, tmp_path, measures.TOY)
    assert sorted(found) == ["mean net", "sampled net", "thresholded net"]
    assert {key: found["thresholded net"][0][key] for key in record["test"]} == pytest.approx(record["test"])
    assert found["mean net"][0]["nll"] != found["thresholded net"][0]["nll"] != found["sampled net"][0]["nll"]
    assert 0.0 <= found["sampled net"][0]["auroc"] <= 100.0


def test_uncertainty_is_that_of_networks_in_the_mnist_table() -> None:
    shown = {run.config.id for run in collect.gather(spec.load("mnist")).runs}
    needed = {run.config.id for runs in collect.gather(spec.load("uncertainty")).needs.values() for run in runs}
    assert needed <= shown


def test_the_original_parameterization_has_the_noisier_gradient_where_alpha_is_large(tmp_path: Path) -> None:
    config = compose([*SMALL_RUN, "dataset.subset=2000", "method=none", f"results_dir={tmp_path}", "runtime.progress=false"])
    train.execute(config)
    networks = {"dense": [train.trained(config, Run(tmp_path, config.id))]}
    seen = measures.parameterization(networks, tmp_path, replace(measures.TOY, alpha_batches=30, size=1000))
    additive, multiplicative = (seen[name][0]["variance"] for name in ("additive", "multiplicative"))
    assert list(additive) == [str(at) for at in range(-8, 5)]
    assert multiplicative["-8"] == pytest.approx(additive["-8"], rel=0.02)
    assert multiplicative["4"] > 1.3 * additive["4"]
    (excess,) = seen["excess"]
    assert excess["excess"]["4"] == pytest.approx(100.0 * (multiplicative["4"] / additive["4"] - 1.0))
    # Of the same minibatches and noise: what the two share drops out of the difference's error.
    assert excess["spread"]["excess.-8"] < 0.1 * 100.0 * seen["additive"][0]["spread"]["variance.-8"] / additive["-8"]
    column = Column("variance.4", "at 4")
    cell = collect.measure([collect.Finding(seen["additive"][0])], column)
    assert cell is not None
    assert (cell.means[0], 0.0 < cell.stds[0] < cell.means[0]) == (additive["4"], True)
    rows = [(Row("", name, published={}), [collect.Planned((), config)]) for name in ("one", "other")]
    evidence = replace(evidence_of([*rows, (Row("", "alpha", measured="additive"), [])], tmp_path), measured=seen)
    assert figures.DRAW["parameterization"](evidence, [])["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("name", spec.names())
def test_committed_tables_are_what_committed_records_render_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    tables = Path("results/tables")
    if not (tables / f"{name}.md").exists():
        pytest.skip("nothing of it is measured yet")
    evidence = collect.gather(spec.load(name))
    assert (tables / f"{name}.md").read_text("utf-8") == render.markdown(evidence.report, evidence.rows)
    assert (tables / f"{name}.tex").read_text("utf-8") == render.latex(evidence.report, evidence.rows)
    assert (tables / f"{name}.csv").read_text("utf-8") == render.comma_separated(evidence.report, evidence.rows)


def test_a_run_that_another_process_finished_meanwhile_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = collect.Planned((), compose([*WATCHED, f"results_dir={tmp_path}", "runtime.progress=false"]))
    train.execute(run.config)
    before = run.run.record.read_bytes()
    monkeypatch.setattr(cli, "_missing", lambda evidence: [run])  # listed just before it was done
    cli._run(evidence_of([], tmp_path), False)
    assert run.run.record.read_bytes() == before


def test_time_and_memory_of_each_estimator_are_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measures, "COSTED", ("model=mlp", "model.width=200", "method=vd_b"))
    found = measures.cost({}, Path("~/.cache/svdo"), measures.TOY)
    assert "profiler" not in capfd.readouterr().err
    assert list(found) == ["local", "separate", "single", "none"]
    assert found["local"][0]["times_local"] == 1.0
    assert all(record["epoch_seconds"] > 0.0 for (record,) in found.values())
    drawn = 10 * 784 * 200 * 4 / 2**20  # the weights of the first layer for ten examples: deviations and weights at least
    memory = {name: record["memory"] for name, (record,) in found.items()}
    assert memory["separate"] > 2 * drawn > max(memory["single"], memory["none"])
    assert min(memory.values()) > 0.0


def test_a_claim_is_judged_group_by_group(report: spec.Report, tmp_path: Path) -> None:
    for seed, error in enumerate((1.8, 2.0)):
        put(tmp_path, record(("model=lenet300", "method=sparsevd", f"seed={seed}"), error, 70.0 + 2 * seed))
    rows = collected(report, tmp_path)
    other = [(replace(row, group="other"), items) for row, items in rows]
    unmeasured = [(replace(row, group="third"), [collect.Finding(None)]) for row, _ in rows]
    evidence = replace(evidence_of([*rows, *other, *unmeasured], tmp_path), report=report)
    ratio, error = ["Sparse VD", "compression"], ["Sparse VD", "test.error"]

    def judged(less: Any, more: Any, group: str = "") -> tuple[str, ...]:
        return index.judged(evidence, spec.Claim("it is so", less, more, [group] * bool(group)))

    part = "1.90 ± 0.14 % (2 of 3 seeds so far)"
    assert judged(67.5, ratio, "LeNet-300-100") == ("holds", "1.04×", "68", "71.0 ± 1.4 (2 of 3 seeds so far)")
    assert judged(error, 1.7, "LeNet-300-100") == ("**does not hold**", "-0.20 points", "1.92 %", f"{part} > 1.7 %")
    assert judged(error, 1.925, "LeNet-300-100")[1] == "+0.02 points"  # 1.92 was published
    assert judged(60, ratio, "LeNet-300-100")[1] == "1.18×"  # not of what was published
    assert judged(60, ratio, "LeNet-300-100")[3] == "60 < 71.0 ± 1.4 (2 of 3 seeds so far)"
    assert judged(error, 1.93, "LeNet-300-100")[0] == judged(error, 1.87, "LeNet-300-100")[0] == "undecided"
    assert judged(error, 1.93, "third") == ("not measured yet", "", "", "")
    assert judged(error, ["SWS", "test.error"]) == ("not measured yet", "", "", "")  # quoted only
    quoted = "LeNet-300-100: 1.92 %<br>other: 1.92 %"
    by = "LeNet-300-100: +3.10 points<br>other: +3.10 points"
    ours = f"LeNet-300-100: {part} < 5 %<br>other: {part} < 5 %"  # the bound is not what was published
    assert judged(error, 5) == ("holds (1 of 3 not measured yet)", by, quoted, ours)
    assert judged([*error, "LeNet-300-100"], 5, "third")[0] == "holds"  # one side of another group
    unlike = replace(rows[1][0], published={})
    evidence = replace(evidence, rows=[*rows, *((replace(unlike, group="other"), items) for row, items in rows[1:])])
    ours = f"LeNet-300-100: {part}<br>other: {part} ≈ 1.92 %"
    assert judged(error, 1.92)[2:] == ("LeNet-300-100: 1.92 %", ours)  # published of one of them alone
    assert judged(1.92, error)[2:] == ("LeNet-300-100: 1.92 %", f"LeNet-300-100: {part}<br>other: 1.92 % ≈ {part}")
    once = [(replace(rows[1][0], label="once"), rows[1][1][:1])]  # its error is 1.8, of one run
    single = ["once", "test.error"]
    evidence = replace(evidence, rows=[*rows, *once])
    alone = ["once", "compression"]
    assert judged(alone, 71.3, "LeNet-300-100")[0] == "undecided, one run"  # its spread is that of the other row
    assert judged(alone, 71.5, "LeNet-300-100")[0] == "holds, one run"
    assert judged(single, error, "LeNet-300-100")[3] == f"1.80 (± 0.14) % (1 run) ≈ {part}"  # by that of the row beside it
    beside = spec.Claim("it is so", single, error, ["LeNet-300-100"], beside="compression")
    assert index.judged(evidence, beside)[1:] == (
        "+0.10 points",
        "1.92 % at 68× ≈ 1.92 % at 68×",
        f"1.80 (± 0.14) % at 70.0× (1 run) ≈ {part} at 71.0×",
    )
    evidence = replace(evidence, rows=once)
    assert judged(alone, 71.3, "LeNet-300-100")[0] == "holds, one run"
    assert judged(single, 1.93, "LeNet-300-100")[0] == "undecided, one run"  # of 10 000 images 180 +- 13 would be misread
    assert judged(single, 1.94, "LeNet-300-100")[0] == "holds, one run"
    evidence = replace(evidence, rows=[(once[0][0], [collect.Finding({"test": {"error": 1.8}})])])
    assert judged(single, 1.9, "LeNet-300-100")[0] == "holds, measured once"
    tie = "undecided, measured once", "+0.00 points", "1.92 %", "1.80 % ≈ 1.8 %"
    assert judged(single, 1.8, "LeNet-300-100") == tie  # equal, even without spread
    evidence = replace(evidence, rows=[(once[0][0], [collect.Finding({"compression": None})])])
    assert judged(68, alone, "LeNet-300-100") == ("**does not hold**, measured once", "", "68", "no weights left")
    assert index._word([True, None], ["a: ", "b: "]) == "a: holds<br>b: undecided"
    assert index._word([], []) == ""


def test_a_claim_shows_how_the_published_figures_compare_beside_ours(tmp_path: Path) -> None:
    rows: list[Any] = []
    for group, published, ours in (
        ("a", (1.0, 2.0), (1.0, 2.0)),
        ("b", (1.29, 1.28), (1.5, 1.5)),
        ("c", (2.0, 1.0), (2.0, 1.0)),
    ):
        for label, quoted, error in zip(("A", "B"), published, ours, strict=True):
            items = [collect.Finding({"test": {"error": error}})]
            rows.append((Row(group, label, published={"test.error": quoted}), items))
    claim = spec.Claim("A is below B", ["A", "test.error"], ["B", "test.error"])
    evidence = evidence_of(rows, tmp_path)
    for reading, sign in ((0.03, "≈"), (0.0, ">")):  # read off a plot, or not
        columns = [Column("test.error", "error", reading=reading)]
        found = index.judged(replace(evidence, report=replace(evidence.report, columns=columns)), claim)
        theirs, ours = f"a: 1 < 2<br>b: 1.29 {sign} 1.28<br>c: 2 > 1", "a: 1.00 < 2.00<br>b: 1.50 ≈ 1.50<br>c: 2.00 > 1.00"
        by = "a: 2×<br>b: 1×<br>c: 0.5×"
        word = "a: holds<br>b: undecided<br>c: **does not hold**<br>measured once"
        assert found == (word, by, theirs, ours)


def test_the_page_says_where_a_figure_shows_a_network_trained_again(tmp_path: Path) -> None:
    overrides = ("model=lenet300", "method=sparsevd", "seed=0", f"results_dir={tmp_path}")
    ours = record(overrides[:3], 1.8, 70.0)
    put(tmp_path, ours)
    planned = collect.Planned(overrides, compose(overrides))
    for error, count in ((1.8, 0), (1.95, 1)):
        drawn = json.dumps({**ours, "test": {**ours["test"], "error": error}})
        watch.save(planned.config, {"record": np.array(drawn)})
        said = index._trained_again([planned])
        assert len(said) == count
        assert all(ours["id"] in line and "1.95 %, 70.0x, where its record has 1.80 %, 70.0x" in line for line in said)


def test_the_index_counts_the_claims_of_each_paper(report: spec.Report, tmp_path: Path) -> None:
    put(tmp_path, record(("model=lenet300", "method=sparsevd", "seed=0"), 1.8, 70.0))
    error = ["Sparse VD", "test.error"]
    claims = [spec.Claim(says, error, bound) for says, bound in (("little", 5), ("less", 1), ("as much", 1.8))]
    claims.append(spec.Claim("unlike SWS", error, ["SWS", "test.error"]))
    report = replace(report, paper="2017", claims=claims, findings=["It came out so."])
    evidence = replace(evidence_of(collected(report, tmp_path), tmp_path), report=report)
    ((_, page),) = index.page([evidence]).items()
    text = page.decode()
    once = " (1 by one run or measurement)"
    words = f"Hold: 1{once}. Do not hold: 1{once}. Undecided: 1{once}. Not everywhere the same: 0."
    counts = f"Claims: 4, of which measured, some in part: 3. {words}"
    said = "Published figures that ours can fall short of, each in the first row that quotes it, which may be by our schedule"
    each = f"\n{said}"
    assert f"\n{counts}\n" in text
    assert "In short:\n\n- It came out so. ([mini](tables/mini.md))\n" in text
    toys = [replace(evidence, report=replace(report, quick=True))]
    assert "came out so" not in "".join(page.decode() for page in index.page(toys).values())
    assert "Not measured yet; the tables say how long that takes:\n\n- unlike SWS (" in text
    assert f"{each}: of variational dropout, 2 reached.\n" in text
    assert "Kingma" not in text  # no report on it
    assert "our own" not in text
    assert "not measured yet: [mini](tables/mini.md)" in text
    twice = [*evidence.rows, *((replace(row, label=f"{row.label}, again"), items) for row, items in evidence.rows)]
    ((_, page),) = index.page([replace(evidence, rows=twice)]).items()
    assert f"{each}: of variational dropout, 2 reached.\n" in page.decode()
    evidence = replace(evidence, report=replace(report, claims=[replace(claims[0], ours=True), claims[1]]))
    ((_, page),) = index.page([evidence]).items()
    assert [line.split(".")[0] for line in page.decode().split("\n") if line.startswith("Claims:")] == [
        "Claims: 1, of which measured, some in part: 1"
    ] * 2
    assert "1.0 minutes on cpu (x86_64), 2 threads, fp32, torch 2.9, 2026-01-02." in text


@pytest.mark.parametrize("name", spec.names())
def test_every_claim_names_rows_and_columns_that_exist(name: str) -> None:
    report = spec.load(name)
    evidence = replace(evidence_of([(row, [collect.Finding(None)]) for row in report.rows], Path()), report=report)
    for claim in report.claims:
        groups = [row.group for row in report.rows]
        assert any(
            all(index._measured(evidence, claim, side, group) for side in (claim.less, claim.more)) for group in groups
        ), claim.says
        assert set(claim.groups) <= set(groups)


def test_quick_shows_every_part_of_a_report_and_touches_no_result(svdo_run: Command, tmp_path: Path) -> None:
    for verb in ("run", "render"):
        done = svdo_run(verb, "alpha", "--quick", "dataset.subset=300", program="svdo.report.cli")
        assert done.returncode == 0, done.stderr
    table = (tmp_path / "build" / "quick" / "tables" / "alpha.md").read_text()
    assert "toy settings" in table
    assert table.count("| 1 of 1 |") == len(spec.load("alpha").rows)
    assert (tmp_path / "build" / "quick" / "figures" / "alpha.png").exists()
    assert not (tmp_path / "results").exists()


def test_a_mistake_in_an_override_of_all_reports_is_one(svdo_run: Command, tmp_path: Path) -> None:
    done = svdo_run("plan", "all", "train.lr=-1", program="svdo.report.cli")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_layers_and_accuracies_are_columns() -> None:
    items = [collect.Finding({"layers": [{"rate": 0.2}, {"rate": 0.5}], "train": {"error": 97.5}})]
    assert collect.measure(items, Column("layers.rate")) == collect.Measured((0.2, 0.5), (0.0, 0.0), 1)
    assert collect.measure(items, Column("train.accuracy")) == collect.Measured((2.5,), (0.0,), 1)
    assert collect.measure([collect.Finding({"layers": [{"rate": None}]})], Column("layers.rate")) is None


def test_regularisers_are_drawn_from_what_is_measured(tmp_path: Path) -> None:
    report = spec.load("hidden_units")
    rows: collect.Rows = []
    for row in report.rows:
        (run,) = collect.runs(report, row, [f"results_dir={tmp_path}"])
        if row.group != "width=1250":
            put(tmp_path, record(run.overrides, 1.5, 1.0))
        rows.append((row, [run]))
    assert figures.DRAW["regularisers"](evidence_of(rows, tmp_path), [])["png"].startswith(b"\x89PNG")


def test_toy_settings_keep_one_seed_and_the_first_value_of_a_sweep() -> None:
    rows = [Row("", "a", [], sweep={"model.k": [value]}, seeds=[3, 4]) for value in (1, 2)] + [Row("", "b", [])]
    toy = spec.toy(spec.Report("x", title="X", seeds=[0, 1], rows=rows))
    assert [row.label for row in toy.rows] == ["a", "b"]
    assert toy.rows[0].seeds == [3]
    assert toy.seeds == [0]
    assert toy.quick


def test_all_names_every_report_and_one_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [Row("", "sigmoid (2017)", measured="sigmoid")]
    good = replace(spec.load("kl"), name="good", rows=rows, figures=[], claims=[])
    bad = replace(good, name="bad")
    reports = {"bad": bad, "good": good}

    def measure(evidence: collect.Evidence) -> None:
        if evidence.report.name == "bad":
            raise UserError("the loss of its data set")
        real(evidence)

    real = measures.measure
    monkeypatch.setattr(measures, "measure", measure)
    monkeypatch.setattr(spec, "names", lambda: list(reports))
    monkeypatch.setattr(spec, "load", lambda name: reports[name])
    for verb, status in (("run", 1), ("render", None)):
        monkeypatch.setattr("sys.argv", ["svdo-report", verb, "all"])
        with pytest.raises(SystemExit) if status else contextlib.nullcontext() as stop:
            cli.main()
        assert (stop and stop.value.code) == status
        assert ("svdo: bad: the loss" in capsys.readouterr().err) == (verb == "run")
    assert "## Approximations of the KL" in (tmp_path / "results" / "README.md").read_text()


def test_the_committed_index_is_what_committed_records_render_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    pages = index.page([collect.gather(spec.load(name)) for name in spec.names()])
    assert Path("results/README.md").read_bytes() == pages[Path("results/README.md")]
