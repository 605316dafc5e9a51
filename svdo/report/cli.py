"""``svdo-report``: plan, run, render or check a declared table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import console, train
from ..checkpoint import write_atomically
from ..cli import exit_status
from ..config import UserError
from ..runs import finished
from . import collect, render, spec, watch
from .render import Collected

Figures = Sequence[tuple[spec.Figure, list[collect.Planned]]]

VERBS = {
    "plan": "list the runs that are missing, the line that trains each, and how long it takes",
    "run": "train what is missing",
    "render": "write results/tables/NAME.md, .tex and .csv, and results/figures/, from what is kept",
    "check": "our figures beside the published ones, a verdict per cell",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"svdo: {message} (svdo-report --help)\n")


def main() -> None:
    """Exit status: 0, or 1 where a run failed, 2 where the user can mend something, 130 or 143 where stopped."""
    parser = _Parser(
        "svdo-report",
        description="Plan, train, render and check the tables declared in conf/report/.",
        epilog="verbs: " + "; ".join(f"{verb}: {text}" for verb, text in VERBS.items()),
    )
    parser.add_argument("verb", choices=list(VERBS))
    parser.add_argument("name", help=f"one of: {', '.join(spec.names())}")
    parser.add_argument("overrides", nargs="*", help="as for svdo-run, for every run of the table: results_dir=..., seed=...")
    arguments = parser.parse_args()
    with exit_status():
        report = spec.load(arguments.name)
        rows = [(row, collect.runs(report, row, arguments.overrides)) for row in report.rows]
        figures = [(figure, collect.watched(report, figure, arguments.overrides)) for figure in report.figures]
        {"plan": _plan, "run": _run, "render": _render, "check": _check}[arguments.verb](report, rows, figures)


def _unseen(figures: Figures) -> list[collect.Planned]:
    runs = {run.config.id: run for _, runs in figures for run in runs}
    return [run for run in runs.values() if not watch.file(run.config).exists()]


def _missing(rows: Collected, figures: Figures) -> list[collect.Planned]:
    """What is to be trained, parents first; a run that figures look at closely is trained with snapshots."""
    found = {run.run.folder: run for run in collect.missing([run for _, planned in rows for run in planned])}
    for run in _unseen(figures):
        if watch.source(run) is None:
            closer = watch.to_train(run)
            found[closer.run.folder] = closer
    return list(found.values())


def _plan(report: spec.Report, rows: Collected, figures: Figures) -> None:
    missing, total = _missing(rows, figures), 0.0
    records = list(finished(_results_dir(rows)))
    times = [collect.expected_seconds(run.config, records) for run in missing]
    for run, seconds in zip(missing, times, strict=True):
        print(f"{run.command}   # {_minutes(seconds)}")
    total = sum(seconds or 0.0 for seconds in times)
    needed = {run.config.id: run for _, planned in rows for run in planned}
    done = sum(run.record is not None for run in needed.values())
    untimed = None in times
    parts = [f"about {_minutes(total)}"] * bool(total) + ["some not timed yet" if total else "not timed yet"] * untimed
    time = f", {', '.join(parts)}" if parts else ""
    again = len(missing) - (len(needed) - done)
    extra = f", {again} to train again for weights that are not kept" if again else ""
    print(f"{report.name}: {done} of {len(needed)} runs done, {len(needed) - done} missing{extra}{time}")


def _minutes(seconds: float | None) -> str:
    return "not timed yet" if seconds is None else f"{seconds / 60:.1f} min"


def _next(left: list[collect.Planned]) -> collect.Planned:
    """The first run that no other process is training and whose parent is trained; where there is none, the first."""
    ready = (run for run in left if not run.run.busy() and not (run.parent and collect.without_weights(run.parent)))
    return next(ready, left[0])


def _run(report: spec.Report, rows: Collected, figures: Figures) -> None:
    """Several processes that run one report share the work: each takes what no other one is training."""
    outcomes, tried = [], set()
    while left := [run for run in _missing(rows, figures) if run.run.folder not in tried]:
        run = _next(left)
        tried.add(run.run.folder)
        print(f"\n=== {run.command}", flush=True)
        overrides = dict(item.partition("=")[::2] for item in run.overrides)
        outcome = {"overrides": overrides, "id": run.config.id, "label": run.command, "message": ""}
        try:
            outcome["status"], _ = train.execute(run.config)
        except UserError as error:
            outcome |= {"status": "failed", "message": str(error)}
            print(f"svdo: {error}", file=sys.stderr, flush=True)
        outcomes.append((outcome, run))
    for run in _unseen(figures):
        if source := watch.source(run):
            watch.save(run.config, watch.watch(run.config, source))
    if not outcomes:
        print(f"{report.name}: every run is done")
    elif any(outcome["status"] == "failed" for outcome, _ in outcomes):
        print(f"\n{console.sweep_table([outcome for outcome, _ in outcomes], [run.record for _, run in outcomes])}", flush=True)
        sys.exit(1)


def _render(report: spec.Report, rows: Collected, figures: Figures) -> None:
    results = Path(_results_dir(rows)).expanduser()
    texts = {
        "md": render.markdown(report, rows),
        "tex": render.latex(report, rows),
        "csv": render.comma_separated(report, rows),
    }
    files: dict[Path, bytes] = {results / "tables" / f"{report.name}.{suffix}": text.encode() for suffix, text in texts.items()}
    print(texts["md"])
    files |= _drawn(rows, figures, results / "figures")
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, content=content: file.write(content))
    except OSError as error:
        raise UserError(f"cannot write to {results}: {error.strerror}; name another folder with results_dir=...") from None
    print("written: " + ", ".join(map(str, files)))


def _drawn(rows: Collected, figures: Figures, folder: Path) -> dict[Path, bytes]:
    """The figures whose data there is; the others are named, and why they stay."""
    files = {}
    for figure, runs in figures:
        seen = {run.config.id: watch.load(run.config) for run in runs}
        unseen = [id for id, found in seen.items() if found is None]
        if unseen:
            print(f"figure {figure.name} stays as it is: svdo-report run has not looked at {', '.join(unseen)} yet")
            continue
        try:
            from . import figures as drawing

            watched = [drawing.Watched(run, found) for run in runs if (found := seen[run.config.id]) is not None]
            for suffix, content in drawing.DRAW[figure.draw](rows, watched).items():
                files[folder / f"{figure.name}.{suffix}"] = content
        except ImportError as error:
            print(f"figure {figure.name} stays as it is: {error}; pip install 'svdo[plot]' draws it")
    return files


def _check(report: spec.Report, rows: Collected, figures: Figures) -> None:
    print(render.verdicts(report, rows))


def _results_dir(rows: Collected) -> str:
    return next(run.config.results_dir for _, planned in rows for run in planned)


if __name__ == "__main__":
    main()
