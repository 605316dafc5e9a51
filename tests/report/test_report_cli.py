"""``svdo-report`` as a user calls it."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command
from reporting import put, record

from svdo.errors import UserError
from svdo.report import cli, measuring, spec
from svdo.report import evidence as evidences
from svdo.report.spec import Row


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
    assert f"{line}   # 2.0 core-minutes, from 1 run, fp32" in plan()
    put(tmp_path / "results", record((*run, "seed=0"), 1.9, 70.0))
    last = plan()
    assert not any(text.startswith(line) for text in last)
    assert last[-1] == "fast: 1 of 8 runs done, 7 missing, about 8.0 core-minutes, some not timed yet"


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


def test_all_names_every_report_and_one_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [Row("", "sigmoid (2017)", measured="sigmoid")]
    good = replace(spec.load("kl"), name="good", rows=rows, figures=[], claims=[])
    bad = replace(good, name="bad")
    reports = {"bad": bad, "good": good}

    def measure(evidence: evidences.Evidence) -> None:
        if evidence.report.name == "bad":
            raise UserError("the loss of its data set")
        real(evidence)

    real = measuring.measure
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(spec, "names", lambda: list(reports))
    monkeypatch.setattr(spec, "load", lambda name: reports[name])
    for verb, status in (("run", 1), ("render", None)):
        monkeypatch.setattr("sys.argv", ["svdo-report", verb, "all"])
        with pytest.raises(SystemExit) if status else contextlib.nullcontext() as stop:
            cli.main()
        assert (stop and stop.value.code) == status
        assert ("svdo: bad: the loss" in capsys.readouterr().err) == (verb == "run")
    assert "## Approximations of the KL" in (tmp_path / "results" / "README.md").read_text()
