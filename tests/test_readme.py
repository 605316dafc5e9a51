"""What the README says can be typed, works."""

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import Command

from svdo.cli.compose import compose

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]


def test_there_are_commands() -> None:
    assert {shlex.split(line)[0] for line in LINES} == {"make", "svdo-run", "svdo-report", "python"}


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make")])
def test_a_make_line_names_targets_that_exist(line: str) -> None:
    subprocess.run(["make", "--dry-run", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("svdo-run")])
def test_a_run_line_runs_when_made_small(line: str, svdo_run: Command) -> None:
    arguments = shlex.split(line)[1:]
    if "model=vgg" in line:  # needs CIFAR-10: every job is composed, and a stand-in for the sweep is run
        jobs = next(argument for argument in arguments if "model.k=" in argument).partition("=")[2].split(",")
        assert all(compose(["model=vgg", f"model.k={k}"]).dataset.name == "cifar10" for k in jobs)
        arguments = ["-m", "model=mlp", "model.width=8,9", "method=binary,sparsevd"]
    done = svdo_run(*arguments, "train.epochs=1", "dataset.subset=400")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("svdo-report")])
def test_a_report_line_works_without_any_run(line: str, svdo_run: Command) -> None:
    done = svdo_run(*shlex.split(line)[1:], program="svdo.report.cli")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python")])
def test_a_script_line_names_a_script_and_a_data_set(line: str) -> None:
    _, script, name = shlex.split(line)
    assert (ROOT / script).exists()
    assert compose([f"dataset={name}"]).dataset.name == name


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+\.\d\dx\n", capsys.readouterr().out)


def updated(text: str, tables: Path) -> str:
    filled: str = runpy.run_path(str(ROOT / "scripts" / "update_readme.py"))["updated"](text, tables)
    return filled


def test_the_table_is_the_rendered_one() -> None:
    assert README.count("<!-- table: ") == 1
    assert updated(README, ROOT / "results" / "tables") == README, "python scripts/update_readme.py fills it in"


def test_a_marked_place_shows_the_columns_and_methods_that_it_names(tmp_path: Path) -> None:
    table = "| network | method | error %, measured |\n|---|---|---|\n| A | one | 1.0 |\n| A | two, more | 2.0 |"
    (tmp_path / "it.md").write_text(f"# Title\n\n{table}\n\nnotes\n")
    chosen = "<!-- table: it\ncolumns: method; error %, measured\nmethods: two, more; three\n-->"
    filled = updated(f"before\n<!-- table: it -->\nold\n<!-- end -->\n{chosen}\nold\n<!-- end -->\nafter\n", tmp_path)
    whole, part = re.findall(r"-->\n(\|.*?)\n<!-- end", filled, re.DOTALL)
    assert [line.split() for line in whole.splitlines() if "-" not in line] == [
        line.split() for line in table.splitlines() if "-" not in line
    ]
    assert [re.split(r"\s*\|\s*", line)[1:-1] for line in part.splitlines() if "-" not in line] == [
        ["method", "error %, measured"],
        ["two, more", "2.0"],
    ]
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- end -->\nafter\n")
