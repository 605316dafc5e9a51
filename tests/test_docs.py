"""What README and docs say can be typed, works; where they point, there is something."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import finished

from svdo.cli.compose import compose
from svdo.cli.export import _parser as export_parser
from svdo.export.formats import Choice
from svdo.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"svdo-run": "svdo.cli.run", "svdo-report": "svdo.report.cli"}
WIDTH, LINES = 100, 120  # of the README

# What a reader of the README's eight lines has already.
NETWORK = """
import torch
import torch.nn.functional as F
import svdo
network = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(2)]
kl_weight, n_train = 0.02, 8
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    lines = [shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines()]
    return [line[1:] for line in lines if line and line[0] == program]


def with_commands(*programs: str) -> list[Path]:
    return [page for page in PAGES if any(commands(page, program) for program in programs)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def write_modules(page: Path, folder: Path) -> list[str]:
    """The page's blocks that begin with a file's name become files; the others are returned."""
    rest = []
    for block in blocks(page, "python"):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            (folder / named[1]).write_text(block, "utf-8")
        else:
            rest.append(block)
    return rest


def test_there_are_commands() -> None:
    found = {shlex.split(line)[0] for page in PAGES for block in blocks(page, "bash") for line in block.splitlines() if line}
    assert found == {"make", "svdo-run", "svdo-report", "svdo-export", "python"}


# ------------------------------------------------------------------ commands


def run(program: str, arguments: list[str], folder: Path) -> None:
    """Run it and see that it ends well."""
    done = finished(folder, *arguments, program=PROGRAMS[program])
    assert done.returncode == 0, f"{program} {shlex.join(arguments)}\n{done.stdout}{done.stderr}"


def made_small(arguments: list[str]) -> list[str]:
    if "--help" in arguments:
        return arguments
    if "model=vgg" in arguments:  # needs CIFAR-10: every job is composed, and a stand-in for the sweep is run
        jobs = next(argument for argument in arguments if "model.k=" in argument).partition("=")[2].split(",")
        assert all(compose(["model=vgg", f"model.k={k}"]).dataset.name == "cifar10" for k in jobs)
        arguments = ["-m", "model=mlp", "model.width=8,9", "method=binary,sparsevd"]
    own_data = any(argument.startswith("dataset=") for argument in arguments)
    return [*arguments, "train.epochs=1", *([] if own_data else ["dataset.subset=400", "dataset.test_subset=400"])]


@pytest.mark.parametrize("page", with_commands("svdo-run", "svdo-report"), ids=name)
def test_a_command_line_works_when_made_small(page: Path, tmp_path: Path) -> None:
    write_modules(page, tmp_path)
    for arguments in commands(page, "svdo-run"):
        run("svdo-run", made_small(arguments), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in commands(page, "svdo-report"):
        run("svdo-report", arguments, tmp_path if arguments[0] == "verify" else empty)


def test_export_lines_have_options_that_exist() -> None:
    lines = [arguments for page in PAGES for arguments in commands(page, "svdo-export")]
    assert lines
    for arguments in lines:  # the commands themselves are tested with the formats
        chosen = export_parser().parse_args(arguments)
        Choice(chosen.to, chosen.compact, chosen.half, chosen.int8).check()


def test_make_lines_name_targets_that_exist() -> None:
    targets = {argument for page in PAGES for arguments in commands(page, "make") for argument in arguments}
    assert {"demo", "test", "docs"} <= targets
    subprocess.run(["make", "--dry-run", *sorted(targets)], cwd=ROOT, check=True, capture_output=True)


def test_script_lines_name_a_script_and_a_data_set() -> None:
    lines = [arguments for page in PAGES for arguments in commands(page, "python")]
    assert lines
    for script, dataset in lines:
        assert (ROOT / script).exists()
        assert compose([f"dataset={dataset}"]).dataset.name == dataset


# -------------------------------------------------------------------- Python


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what a page's modules register is gone afterwards."""
    methods, modules = dict(METHODS), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    METHODS.clear()
    METHODS.update(methods)
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_a_pages_python_runs_from_top_to_bottom(page: Path, untouched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = write_modules(page, untouched)
    names: dict[str, object] = {}
    if page.name == "README.md":
        exec(NETWORK, names)
    for block in code:
        exec(compile(block, name(page), "exec"), names)
    if any("print(" in block for block in code):
        assert re.search(r"\d+\.\d\d", capsys.readouterr().out)


# --------------------------------------------------------------------- links


def slugs(page: Path) -> set[str]:
    """The anchors of its headings, as forges make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name(page)}: {link}"
        assert not anchor or anchor in slugs(target), f"{name(page)}: {link}"


def pages_of(entry: object) -> Iterator[str]:
    """The files that a part of mkdocs' navigation names."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for part in entry.values():
            yield from pages_of(part)
    elif isinstance(entry, list):
        for part in entry:
            yield from pages_of(part)


def test_every_page_is_in_the_sites_navigation() -> None:
    found = set(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert {name(page) for page in PAGES} <= found
    assert all((ROOT / path).is_file() for path in found)


# -------------------------------------------------------------------- README


def test_the_readme_is_short_and_narrow() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= LINES
    wide = [line for line in lines if len(line) > WIDTH and not line.startswith(("|", "![", "columns: "))]
    assert not wide


def updated(text: str, tables: Path) -> str:
    filled: str = runpy.run_path(str(ROOT / "scripts" / "update_readme.py"))["updated"](text, tables)
    return filled


def test_the_table_is_the_rendered_one() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count("<!-- table: ") == 1
    assert updated(readme, ROOT / "results" / "tables") == readme, "python scripts/update_readme.py fills it in"


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
