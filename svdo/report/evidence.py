"""What a declared table rests on in the run store: its runs, what they start from, and what is still missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import Config, RuntimeConfig, expanded
from ..errors import UserError
from ..methods import Method
from ..runs import REBUILT, Record, Run, with_weights
from . import records, spec
from .composing import compose
from .spec import Figure, Report, Row


@dataclass(frozen=True)
class Planned:
    """One run that a table or figure needs: the overrides that name it, its configuration, the run it starts from."""

    overrides: tuple[str, ...]
    config: Config
    parent: Planned | None = None

    @property
    def command(self) -> str:
        """The line that trains it."""
        return shlex.join(["svdo-run", *self.overrides])

    @property
    def run(self) -> Run:
        """Its place in the run store."""
        return Run(self.config.results_dir, self.config.id)

    @property
    def record(self) -> Record | None:
        """Its record, once it is done."""
        return records.read(self.run)

    def at(self, results_dir: str | Path, snapshots: int = 0) -> Planned:
        """The same run in another store, keeping its weights after every so many epochs."""
        kept = tuple(item for item in self.overrides if not item.startswith("results_dir="))
        ways = (f"runtime.snapshots={snapshots}",) * bool(snapshots) + (f"results_dir={results_dir}",)
        runtime = replace(self.config.runtime, snapshots=snapshots)
        return Planned((*kept, *ways), replace(self.config, results_dir=str(results_dir), runtime=runtime), self.parent)


@dataclass(frozen=True)
class Finding:
    """One outcome of a report's measurement, named like a run's record."""

    record: Record | None


Rows = list[tuple[Row, list[Planned | Finding]]]


@dataclass(frozen=True)
class Evidence:
    """A report with all that it needs: what its rows and its figures rest on, there or still missing."""

    report: Report
    results_dir: Path
    data_dir: Path
    runtime: RuntimeConfig  # of what is measured; each run has its own
    rows: Rows
    figures: list[tuple[Figure, list[Planned]]]
    needs: dict[str, list[Planned]]
    measured: Record | None  # its measurement: by row, the outcomes; what figures show; when and on what it was made

    @property
    def runs(self) -> list[Planned]:
        """The runs of all rows."""
        return [item for _, items in self.rows for item in items if isinstance(item, Planned)]


def method_of(items: Sequence[Planned | Finding]) -> Method | None:
    """The method of a row's runs; None where it has none."""
    methods = (item.config.method for item in items if isinstance(item, Planned))
    return next((method for method in methods if isinstance(method, Method)), None)


def gather(report: Report, extra: Sequence[str] = ()) -> Evidence:
    """What there is for a report, its runs being changed by the ``extra`` overrides.

    Raises:
        UserError: where an override is not one, or what was measured cannot be read.
    """
    if not report.needs and all(row.overrides is None for row in report.rows):
        compose(extra)  # no run of the table will find a mistake in them
    ways = ("results_dir=", "data_dir=", "runtime.")
    where = compose([item for item in (*report.overrides, *extra) if item.lstrip("+").startswith(ways)])
    results_dir, data_dir = expanded("results_dir", where.results_dir), Path(where.data_dir)
    needs = {name: runs(report, Row(overrides=overrides), extra) for name, overrides in report.needs.items()}
    measured = kept_measurement(report, results_dir, needs)
    rows: Rows = []
    for row in report.rows:
        outcomes = [
            Finding({"id": f"{report.name}/{row.measured}", **found}) for found in (measured or {}).get(row.measured, [])
        ]
        outcomes = outcomes or [Finding(None)] * bool(row.measured)
        rows.append((row, [*runs(report, row, extra), *outcomes]))
    figures = [(figure, watched(report, figure, extra)) for figure in report.figures]
    return Evidence(report, results_dir, data_dir, where.runtime, rows, figures, needs, measured)


def network_ids(needs: dict[str, list[Planned]]) -> dict[str, list[str]]:
    """The runs whose networks a measurement looks at, as it keeps them."""
    return {name: [run.config.id for run in planned] for name, planned in needs.items()}


def measurement_file(report: Report, results_dir: Path) -> Path:
    """Where the report's measurement is kept."""
    return results_dir / "measured" / f"{report.name}.json"


def kept_measurement(report: Report, results_dir: Path, needs: dict[str, list[Planned]]) -> Record | None:
    """The report's measurement; None where there is none, or it looked at other networks than are declared now."""
    path = measurement_file(report, results_dir)
    try:
        found: Record | None = json.loads(path.read_text("utf-8")) if report.measure and path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or delete it to measure anew") from None
    rows = {row.measured for row in report.rows if row.measured}
    if found is not None and not (isinstance(found, dict) and found.keys() >= {"networks", "seconds", "provenance"}):
        raise UserError(f"{path} is no measurement; restore it, or delete it to measure anew")
    return found if found and found["networks"] == network_ids(needs) and found.keys() >= rows else None


def runs(report: Report, row: Row, extra: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[Planned]:
    """The runs of a row, one per seed, by default its own or else the report's; empty for a row that is quoted only.

    Raises:
        UserError: where an override is not one, or no row above it has the label of its parent.
    """
    if row.overrides is None:
        return []
    child = compose((*report.overrides, *row.overrides, *extra))
    given = any(item.lstrip("+").startswith("seed=") for item in (*row.overrides, *extra))
    if given:
        seeds = [child.seed]
    elif seeds is None:
        seeds = report.seeds if row.seeds is None else row.seeds
    parents = runs(report, spec.parent(report, row), extra, seeds) if row.parent else [None] * len(seeds)
    planned = []
    for seed, parent in zip(seeds, parents, strict=True):
        ending = (*extra,) if given else (f"seed={seed}", *extra)
        overrides, config = (*report.overrides, *row.overrides), replace(child, seed=seed)
        if parent is not None:
            overrides, config = (*overrides, f"pretrained={parent.config.id}"), replace(config, pretrained=parent.config.id)
        planned.append(Planned((*overrides, *ending), config, parent))
    return planned


def watched(report: Report, figure: Figure, extra: Sequence[str] = ()) -> list[Planned]:
    """The runs that a figure looks at closely."""
    overrides = [(*report.overrides, *run, *extra) for run in figure.runs]
    return [Planned(items, compose(items)) for items in overrides]


def missing(planned: Sequence[Planned]) -> list[Planned]:
    """What is to be trained, in order and each once: a run without record, after what it starts from if that has no weights."""
    lineages = [_lineage(run) for run in planned if run.record is None]
    return list({item.config.id: item for lineage in lineages for item in lineage}.values())


def _lineage(run: Planned) -> list[Planned]:
    """The run, and before it what it starts from, as far back as weights are to be trained."""
    parent = run.parent and without_weights(run.parent)
    return [*(_lineage(parent) if parent else ()), run]


def without_weights(run: Planned) -> Planned | None:
    """The run if its weights are still to be trained; where its record was kept without them, in the store beside it."""
    if run.record is None:
        return run
    if with_weights(run.config.results_dir, run.config.id):
        return None
    return run.at(Path(run.config.results_dir) / REBUILT)
