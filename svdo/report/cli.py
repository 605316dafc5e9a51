"""``svdo-report``: plan, run, render or check a declared table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from .. import console, train
from ..checkpoint import write_atomically
from ..cli import exit_status
from ..config import UserError
from ..runs import Run
from . import collect, render, spec
from .render import Collected

VERBS = {
    "plan": "list the runs that are missing, the line that trains each, and how long it takes",
    "run": "train what is missing",
    "render": "write results/tables/NAME.md, .tex and .csv from the records",
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
        collected = [(row, collect.runs(report, row, arguments.overrides)) for row in report.rows]
        {"plan": _plan, "run": _run, "render": _render, "check": _check}[arguments.verb](report, collected)


def _missing(collected: Collected) -> list[collect.Planned]:
    missing = [run for _, planned in collected for run in planned if run.record is None]
    return list({run.config.id: run for run in missing}.values())


def _plan(report: spec.Report, collected: Collected) -> None:
    missing, total = _missing(collected), 0.0
    for run in missing:
        seconds = collect.expected_seconds(run.config)
        total += seconds or 0.0
        print(f"{run.command}   # {_minutes(seconds)}")
    needed = len({run.config.id for _, planned in collected for run in planned})
    untimed = any(collect.expected_seconds(run.config) is None for run in missing)
    parts = [f"about {_minutes(total)}"] * bool(total) + ["some not timed yet" if total else "not timed yet"] * untimed
    time = f", {', '.join(parts)}" if parts else ""
    print(f"{report.name}: {needed - len(missing)} of {needed} runs done, {len(missing)} missing{time}")


def _minutes(seconds: float | None) -> str:
    return "not timed yet" if seconds is None else f"{seconds / 60:.1f} min"


def _run(report: spec.Report, collected: Collected) -> None:
    outcomes = []
    for run in _missing(collected):
        print(f"\n=== {run.command}", flush=True)
        overrides = dict(item.partition("=")[::2] for item in run.overrides)
        outcome = {"overrides": overrides, "id": run.config.id, "label": run.command, "message": ""}
        try:
            outcome["status"], _ = train.execute(run.config)
        except UserError as error:
            outcome |= {"status": "failed", "message": str(error)}
            print(f"svdo: {error}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    if not outcomes:
        print(f"{report.name}: every run is done")
    elif any(outcome["status"] == "failed" for outcome in outcomes):
        records = [Run(run.config.results_dir, run.config.id).result() for run in _missing(collected)]
        print(f"\n{console.sweep_table(outcomes, records)}", flush=True)
        sys.exit(1)


def _render(report: spec.Report, collected: Collected) -> None:
    results_dir = next(run.config.results_dir for _, planned in collected for run in planned)
    folder = Path(results_dir).expanduser() / "tables"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder with results_dir=...") from None
    texts = {
        "md": render.markdown(report, collected),
        "tex": render.latex(report, collected),
        "csv": render.comma_separated(report, collected),
    }
    for suffix, text in texts.items():
        write_atomically(folder / f"{report.name}.{suffix}", lambda file, text=text: file.write(text.encode()))
    print(texts["md"])
    print(f"written to {folder}/{report.name}.md, .tex, .csv")


def _check(report: spec.Report, collected: Collected) -> None:
    print(render.verdicts(report, collected))


if __name__ == "__main__":
    main()
