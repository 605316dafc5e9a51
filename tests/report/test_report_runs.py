"""A small report, trained in this process: order, failures, work shared, figures."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reporting import SMALL_RUN, WATCHED, evidence_of

from svdo import train
from svdo.cli.compose import compose
from svdo.config import Config
from svdo.data.known import Images
from svdo.data.sources import UnavailableError
from svdo.errors import UserError
from svdo.report import cli, watch
from svdo.report import evidence as evidences
from svdo.report.spec import Row
from svdo.runs import Run

pytest_plugins = ["report_fixtures"]


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
    first, second = [evidences.Planned((), compose([*SMALL_RUN, "method=none", f"seed={seed}"])) for seed in (0, 1)]
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

    monkeypatch.setattr("svdo.data.images.load", load)
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
    assert watch.source(evidences.Planned((), config)) is None
    (tmp_path / "results" / "rebuilt" / "runs").mkdir(parents=True)
    shutil.copytree(Run(tmp_path / "results", config.id).folder, tmp_path / "results" / "rebuilt" / "runs" / config.id)
    small("run")
    seen = watch.load(config)
    assert seen is not None
    assert seen["epochs"].tolist() == [1, 2]
    watch.file(config).write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        watch.load(config)


def test_a_run_that_another_process_finished_meanwhile_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evidences.Planned((), compose([*WATCHED, f"results_dir={tmp_path}", "runtime.progress=false"]))
    train.execute(run.config)
    before = run.run.record.read_bytes()
    monkeypatch.setattr(cli, "_missing", lambda evidence: [run])  # listed just before it was done
    cli._run(evidence_of([], tmp_path), False)
    assert run.run.record.read_bytes() == before
