"""The tree reads in the order of the paper: mathematics first, evidence last, and nothing looks back."""

import ast
from pathlib import Path

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


def imports(path: Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth of its code."""
    package = ["svdo", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def modules() -> dict[str, set[str]]:
    """Module or sub-package of svdo -> all that its files import."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        top = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if top != "__init__":
            found[top] = found.get(top, set()) | imports(path)
    return found


def test_a_module_imports_only_from_those_that_stand_before_it() -> None:
    assert sorted(modules()) == sorted(ORDER), "a new module needs its place in ORDER"
    for name, names in modules().items():
        own = {part.split(".")[1] for part in names if part.startswith("svdo.")} & set(ORDER) - {name}
        late = [other for other in own if ORDER.index(other) > ORDER.index(name)]
        assert not late, f"{name} imports {late}, which stand after it: mathematics first, evidence last ({' '.join(ORDER)})"


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
    for path in ROOT.rglob("*.py"):
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        found = telling & {float(value) for value in constants if isinstance(value, int | float)}
        assert not found, f"{path.name} holds {found}: a published number stands in conf/report/ alone, with its source"
