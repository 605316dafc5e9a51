"""The tree reads in the order of the paper: mathematics first, evidence last, and nothing looks back."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import svdo
from svdo.report import spec

ROOT = Path(svdo.__file__).parent
ORDER = [
    "errors",
    "registry",
    "math",
    "config",
    "layers",
    "methods",
    "conversion",
    "objective",
    "counts",
    "batch_norm",
    "data",
    "models",
    "tasks",
    "runs",
    "machine",
    "export",
    "train",
    "extend",
    "cli",
    "report",
]
LIBRARY = ORDER[: ORDER.index("batch_norm") + 1]


MODULE_LINES, FUNCTION_LINES = 300, 40
REASON = "# long:"  # on the line of a definition, with why it may be


def package_of(path: Path) -> list[str]:
    return ["svdo", *path.relative_to(ROOT).parts[:-1]]


def name_of(path: Path) -> str:
    """svdo.layers of svdo/layers/__init__.py, svdo.layers.base of svdo/layers/base.py."""
    return ".".join([*package_of(path), *([] if path.stem == "__init__" else [path.stem])])


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name: str) -> set[str]:
    """Absolute names of all that a module imports, at any depth of its code."""
    package, found = package_of(FILES[name]), set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def imported_modules(name: str) -> set[str]:
    """The modules of svdo that a module names: a package itself only where something of it and no module of it is meant."""
    package, found = package_of(FILES[name]), set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in FILES else module)
    return (found & FILES.keys()) - {name}


def modules() -> dict[str, set[str]]:
    """Module or package right under svdo -> all that its files import."""
    found: dict[str, set[str]] = {}
    for name in FILES:
        if name != "svdo":
            top = name.split(".")[1]
            found[top] = found.get(top, set()) | imports(name)
    return found


def test_a_module_imports_only_from_those_that_stand_before_it() -> None:
    assert sorted(modules()) == sorted(ORDER), "a new module needs its place in ORDER"
    for name, names in modules().items():
        own = {part.split(".")[1] for part in names if part.startswith("svdo.")} & set(ORDER) - {name}
        late = [other for other in own if ORDER.index(other) > ORDER.index(name)]
        assert not late, f"{name} imports {late}, which stand after it: mathematics first, evidence last ({' '.join(ORDER)})"


def test_no_modules_import_each_other_round_in_a_circle() -> None:
    """Imports for the type checker and inside functions count, too: a circle is one idea, or two in the wrong order."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, f"{' -> '.join([*path[path.index(name) :], name])}: let one of them know nothing of the other"
        if name not in done:
            for other in sorted(imported_modules(name)):
                visit(other, [*path, name])
            done.add(name)

    for name in FILES:
        visit(name, [])


def test_no_module_is_longer_than_one_reads_at_a_time() -> None:
    for name, path in FILES.items():
        lines = len(path.read_text().splitlines())
        assert lines <= MODULE_LINES, f"{name} has {lines} lines, over {MODULE_LINES}: it holds more than one idea; split it"


def test_no_function_is_longer_than_one_sees_at_a_time() -> None:
    """Docstrings aside; where length is right, the reason stands beside the definition."""
    for name, tree in TREES.items():
        lines = FILES[name].read_text().splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and REASON not in lines[node.lineno - 1]:
                first = node.body[0]
                said = ast.get_docstring(node) is not None
                length = node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if said else 0)  # type: ignore
                assert length <= FUNCTION_LINES, (
                    f"{name}.{node.name} has {length} lines, over {FUNCTION_LINES}: split it, or say why not, {REASON} ..."
                )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_every_package_is_part_of_the_wheel() -> None:
    with open(ROOT.parent / "pyproject.toml", "rb") as file:
        listed = importlib.import_module("tomllib").load(file)["tool"]["setuptools"]["packages"]
    packages = {name for name, path in FILES.items() if path.stem == "__init__"}
    assert set(listed) - {"svdo.conf"} == packages, "a package that pyproject.toml does not name is missing from the wheel"


def test_the_library_half_works_without_hydra() -> None:
    for name in LIBRARY:
        outside = {part.split(".")[0] for part in modules()[name]}
        assert not outside & {"hydra", "omegaconf", "tqdm", "torchvision"}, name


def test_the_schema_imports_no_torch() -> None:
    assert not {part.split(".")[0] for part in modules()["config"]} & {"torch", "torchvision", "hydra", "omegaconf"}


def test_every_file_name_of_a_run_stands_in_one_place() -> None:
    for name in ("result.json", "metrics.jsonl", "checkpoint.pt", "weights.pt", '"lock"'):
        users = [
            path.name
            for path in ROOT.rglob("*.py")
            if f"/ {name}" in path.read_text() or f'"{name.strip(chr(34))}"' in path.read_text()
        ]
        assert users == ["store.py"], (name, users)


def test_a_published_number_stands_in_conf_report_alone() -> None:
    published = {
        float(number)
        for name in spec.names()
        for row in spec.load(name).rows
        for value in row.published.values()
        for number in (value if isinstance(value, list) else [value])
    }
    telling = {number for number in published if number % 1 and len(f"{number:g}") >= 4}  # 0.8 or 200 may mean anything
    assert telling
    for name, tree in TREES.items():
        constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found = telling & {float(value) for value in constants if isinstance(value, int | float)}
        assert not found, f"{name} holds {found}: a published number stands in conf/report/ alone, with its source"
