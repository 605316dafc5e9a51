"""``svdo-run -m``: every combination is a job; one that cannot be composed fails alone, and one table closes over all."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError, require
from ..runs import Run
from ..train import console
from . import compose

Outcome = dict[str, Any]  # of one job: label, overrides, id, results_dir, status, exit, message
MAX_JOBS = 10_000


def register() -> None:
    """Give Hydra's sweeper ours in place of its own method: a sweeper beside it would have to be a package of its own."""
    Plugins.instance()  # loads its plugins anew, so the class is another one before
    sys.modules[BasicSweeper.__module__].BasicSweeper.sweep = _sweep


def _sweep(hydra: BasicSweeper, arguments: list[str]) -> None:
    """Launch the jobs, print the table, and exit with a status where one failed; unlike Hydra's, it writes nothing.

    Raises:
        UserError: where no job can be composed, or where there is none.
    """
    assert hydra.config is not None and hydra.launcher is not None and hydra.hydra_context is not None
    loader = hydra.hydra_context.config_loader
    jobs = expand(OverridesParser.create(config_loader=loader).parse_overrides(arguments))
    outcomes: list[Outcome | None] = []
    for job in jobs:
        try:
            loader.load_sweep_config(hydra.config, job)
            outcomes.append(None)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            outcomes.append(_refused(job, compose.explain(error)))
    refused = [outcome for outcome in outcomes if outcome is not None]
    if len(refused) == len(jobs):
        raise UserError(refused[0]["message"])
    for outcome in refused:
        print(f"svdo: {outcome['label']}: {outcome['message']}", file=sys.stderr, flush=True)
    launched = [job for job, outcome in zip(jobs, outcomes, strict=True) if outcome is None]
    done = iter([result.return_value for result in hydra.launcher.launch(launched, initial_job_idx=0)])
    _close([outcome or next(done) for outcome in outcomes])


def expand(overrides: Iterable[Override]) -> list[list[str]]:
    """The jobs of a sweep, each as its overrides: every combination of the values of each key.

    Raises:
        UserError: where there is no job, or there are more than anyone means.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [str(override.input_line)]
            continue
        require(override.is_discrete_sweep(), f"{override.input_line} has no list of values to sweep over")
        try:
            values[key] = [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1)]
        except ArithmeticError:
            raise UserError(f"{override.input_line} cannot be counted; write whole numbers") from None
        require(bool(values[key]), f"{override.input_line} has no value, so there is nothing to train")
    number = math.prod(map(len, values.values()))
    require(number <= MAX_JOBS, f"a sweep of {number} jobs or more; svdo-run -m takes at most {MAX_JOBS} at a time")
    return [list(job) for job in itertools.product(*values.values())]


def _refused(job: Sequence[str], message: str) -> Outcome:
    label, overrides = ",".join(job), compose.given(job)
    return {"label": label, "overrides": overrides, "id": None, "status": "failed", "exit": 2, "message": message}


def _close(outcomes: Sequence[Outcome]) -> None:
    records = [None if outcome["exit"] else Run(outcome["results_dir"], outcome["id"]).result() for outcome in outcomes]
    print(f"\n{console.sweep_table(outcomes, records)}", flush=True)
    if failures := [outcome["exit"] for outcome in outcomes if outcome["exit"]]:
        sys.exit(2 if all(status == 2 for status in failures) else 1)
