"""``svdo-report``: plan, run, render or check a declared table."""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from .. import machine, train
from ..cli.compose import given
from ..cli.run import exit_status
from ..config import Config
from ..data.sources import UnavailableError
from ..errors import UserError
from ..runs import REBUILT, Record
from ..runs.disk import write_atomically
from ..train import console
from . import evidence as evidences
from . import figures, measuring, page, records, render, spec, verify, watch
from .composing import compose
from .evidence import Evidence, Planned
from .expected import Expected, expected

VERBS = {
    "plan": "list the runs that are missing, the line that trains each, and how long it takes",
    "run": "train and measure what is missing",
    "render": "write results/tables/NAME.md, .tex and .csv and results/figures/ from what is kept; all: results/README.md too",
    "check": "our figures beside the published ones, a verdict per cell",
    "verify": "whether every file of the results is what was written; takes no name",
}
ALL = "all"
TOY = ("dataset.subset=1000", "dataset.test_subset=1000", "train.epochs=1", "results_dir=build/quick")


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
    parser.add_argument("name", nargs="?", help=f"one of: {', '.join([ALL, *spec.names()])}")
    parser.add_argument("overrides", nargs="*", help="as for svdo-run, for every run of the table: results_dir=..., seed=...")
    parser.add_argument(
        "--quick", action="store_true", help=f"one seed, the first value of each sweep, {' '.join(TOY)}: shows that all works"
    )
    arguments = parser.parse_intermixed_args()
    with exit_status(), train.signals():
        if arguments.verb == "verify":
            _verify(arguments.name or ALL, arguments.overrides)
            return
        if arguments.name is None:
            parser.error(f"{arguments.verb} needs a name, one of: {', '.join([ALL, *spec.names()])}")
        overrides = [*TOY, *arguments.overrides] if arguments.quick else arguments.overrides
        reports = [spec.load(name) for name in (spec.names() if arguments.name == ALL else [arguments.name])]
        if arguments.verb == "render" or (arguments.verb == "run" and any(report.measure for report in reports)):
            _refuse_to_mix(overrides)
        act = {"plan": _plan, "run": _run, "render": _render, "check": _check}[arguments.verb]
        several, failed = len(reports) > 1, False
        gathered = [evidences.gather(spec.toy(report) if arguments.quick else report, overrides) for report in reports]
        for evidence in gathered:
            try:
                failed |= act(evidence, several)
            except UserError as error:  # one that lacks its data or its packages leaves the others
                if not several:
                    raise
                print(f"svdo: {evidence.report.name}: {error}", file=sys.stderr, flush=True)
                failed = True
        if arguments.verb == "render" and several:
            _write(page.page(gathered))
        if failed:
            sys.exit(1)


def _verify(name: str, overrides: list[str]) -> None:
    """Look at the whole store, whatever tables need of it; exit with status 2 where something is not right."""
    overrides = [name, *overrides] if "=" in name else overrides
    if "=" not in name and name != ALL:
        raise UserError(f"verify looks at all results; leave out {name}")
    found = verify.verify(Path(compose(overrides).results_dir).expanduser())
    print(found, flush=True)
    if found.wrong:
        sys.exit(2)


def _refuse_to_mix(overrides: list[str]) -> None:
    """A table or measurement changed by overrides must not take the place of the declared one."""
    changing = [key for key in given(overrides) if key not in ("results_dir", "data_dir") and not key.startswith("runtime.")]
    where = compose([item for item in overrides if item.startswith("results_dir=")]).results_dir
    if changing and Path(where).expanduser().resolve() == Path(Config.results_dir).resolve():
        raise UserError(f"{changing[0]} makes another table than the declared one; say where it goes with results_dir=...")


def _unseen(evidence: Evidence) -> list[Planned]:
    runs = {run.config.id: run for _, runs in evidence.figures for run in runs}
    return [run for run in runs.values() if not watch.file(run.config).exists()]


def _missing(evidence: Evidence) -> list[Planned]:
    """What is to be trained, parents first; a run that figures look at closely is trained with snapshots."""
    found = {run.run.folder: run for run in evidences.missing(evidence.runs)}
    for run in _unseen(evidence):
        if watch.source(run) is None:
            closer = watch.to_train(run)
            found[closer.run.folder] = closer
    if _to_measure(evidence):
        for needed in itertools.chain(*evidence.needs.values()):
            if absent := evidences.without_weights(needed):
                found.setdefault(absent.run.folder, absent)
    return list(found.values())


def _is_rebuilt(run: Planned) -> bool:
    return Path(run.config.results_dir).name == REBUILT


def _to_measure(evidence: Evidence) -> bool:
    return bool(evidence.report.measure) and evidence.measured is None


def _plan(evidence: Evidence, brief: bool) -> bool:
    """The commands and the sum of their times; ``brief`` is the sum alone."""
    missing, name = _missing(evidence), evidence.report.name
    known = records.finished(evidence.results_dir) if missing else []
    times = [_expected(run, known) for run in missing]
    if not brief:
        for run, time in zip(missing, times, strict=True):
            print(f"{run.command}   # {time or render.NOT_TIMED}")
        if _to_measure(evidence):
            print(f"svdo-report run {name}   # measures {evidence.report.measure}")
    needed = {run.config.id: run for run in evidence.runs}
    done = sum(run.record is not None for run in needed.values())
    parts = [f"about {amount}" for amount in _sums(times)]
    if None in times:
        parts.append("some not timed yet" if parts else render.NOT_TIMED)
    again = sum(map(_is_rebuilt, missing))
    said = [f"{done} of {len(needed)} runs done, {len(needed) - done} missing"] * bool(needed)
    said += [f"{again} to train again for weights that are not kept"] * bool(again)
    said += ["the measurement is missing" if _to_measure(evidence) else "measured"] * bool(evidence.report.measure)
    print(f"{name}: {', '.join([*said, *parts])}", flush=True)
    return False


def _expected(run: Planned, known: list[Record]) -> Expected | None:
    runtime = run.config.runtime
    device = machine.device_type(runtime)
    return expected(run.config, known, device, machine.precision(runtime, torch.device(device)))


def _sums(times: list[Expected | None]) -> list[str]:
    """What a CPU takes, and what a GPU takes."""
    sums = []
    for on_gpu in (False, True):
        if timed := [time for time in times if time and time.on_gpu == on_gpu]:
            sums.append(replace(timed[0], seconds=sum(time.seconds for time in timed)).amount)
    return sums


def _next(left: list[Planned]) -> Planned:
    """The first run that no other process is training and whose parent is trained; where there is none, the first."""
    ready = (run for run in left if not run.run.busy() and not (run.parent and evidences.without_weights(run.parent)))
    return next(ready, left[0])


def _run(evidence: Evidence, brief: bool) -> bool:
    """Several processes that run one report share the work: each takes what no other one is training."""
    outcomes, tried, unavailable = [], set(), {}
    while left := [
        run for run in _missing(evidence) if run.run.folder not in tried and run.config.dataset.name not in unavailable
    ]:
        run = _next(left)
        tried.add(run.run.folder)
        print(f"\n=== {run.command}", flush=True)
        lacking = watch.source(run) is None if run.config.runtime.snapshots else not run.run.weights.exists()
        if _is_rebuilt(run) and run.record is not None and lacking:  # done, but what it was trained again for is not there
            run.run.record.unlink(missing_ok=True)
        outcome: dict[str, Any] = {"overrides": given(run.overrides), "id": run.config.id, "label": run.command, "message": ""}
        try:
            outcome["status"], _ = train.execute(run.config)
        except UnavailableError as error:
            unavailable[run.config.dataset.name] = str(error)
            continue
        except BrokenPipeError:
            raise
        except Exception as error:  # the next run may do better
            outcome |= {"status": "failed", "message": (str(error).splitlines() or [type(error).__name__])[0]}
            print(f"svdo: {outcome['message']}", file=sys.stderr, flush=True)
            if not isinstance(error, UserError | OSError):
                outcome["message"] += f" (traceback: {run.run.error})"
        outcomes.append((outcome, run))
    for run in _unseen(evidence):
        if source := watch.source(run):
            watch.save(run.config, watch.watch(run.config, source))
    failed = any(outcome["status"] == "failed" for outcome, _ in outcomes)
    for name, reason in unavailable.items():
        print(f"svdo: all runs on {name} are left out: {reason}", file=sys.stderr, flush=True)
    if _to_measure(evidence) and not failed and not unavailable:
        measuring.measure(evidence)
    elif not outcomes and not unavailable:
        print(f"{evidence.report.name}: everything is done")
    if failed:
        print(f"\n{console.sweep_table([outcome for outcome, _ in outcomes], [run.record for _, run in outcomes])}", flush=True)
    return failed or bool(unavailable)


def _render(evidence: Evidence, brief: bool) -> bool:
    report, results = evidence.report, evidence.results_dir
    texts = {
        "md": render.markdown(report, evidence.rows),
        "tex": render.latex(report, evidence.rows),
        "csv": render.comma_separated(report, evidence.rows),
    }
    _write({results / "tables" / f"{report.name}.{suffix}": text.encode() for suffix, text in texts.items()})
    if not brief:
        print(texts["md"])
    _write(_drawn(evidence))
    return False


def _write(files: dict[Path, bytes]) -> None:
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, content=content: file.write(content))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; name another folder with results_dir=...") from None
        print(f"written {path}")


def _drawn(evidence: Evidence) -> dict[Path, bytes]:
    """The figures whose data there is; the others are named, and why they stay."""
    files = {}
    for figure, runs in evidence.figures:
        seen = {run.config.id: watch.load(run.config) for run in runs}
        unseen = [id for id, found in seen.items() if found is None]
        empty = not any(item.record for _, items in evidence.rows for item in items)
        if unseen or empty or _to_measure(evidence):
            what = f"measured {evidence.report.measure}" if _to_measure(evidence) else "done any of its runs"
            what = f"looked at {', '.join(unseen)}" if unseen else what
            print(f"figure {figure.name} stays as it is: svdo-report run has not {what} yet")
            continue
        try:
            watched = [figures.Watched(run, found) for run in runs if (found := seen[run.config.id]) is not None]
            for suffix, content in figures.find(figure.draw)(evidence, watched).items():
                files[evidence.results_dir / "figures" / f"{figure.name}.{suffix}"] = content
        except ImportError as error:
            print(f"figure {figure.name} stays as it is: {error}; pip install '.[plot]' draws it")
    return files


def _check(evidence: Evidence, brief: bool) -> bool:
    if brief:
        print(f"\n{evidence.report.title}")
    print(render.verdicts(evidence.report, evidence.rows))
    return False


if __name__ == "__main__":
    from ..cli.start import svdo_report

    svdo_report()
