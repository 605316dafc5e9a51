"""Train a run, or go on with it, or find it done."""

from __future__ import annotations

import contextlib
import traceback

import torch

from ..config import Config
from ..errors import UserError
from ..machine import ranks
from ..runs import Record, Run
from . import console
from .job import check_same_source
from .loop import Training
from .preflight import preflight
from .stopping import signals


def execute(config: Config) -> tuple[str, Record]:
    """Train the run, or go on with it, or find it done; returns "done" or "skipped" with its record.

    Raises:
        UserError: on anything the user can mend.
        Interrupted: on Ctrl-C or SIGTERM, with everything saved.
    """
    ranks.require_one()
    run = Run(config.results_dir, config.id)
    record = run.result()
    if record is None:
        preflight(config, started=run.checkpoint.exists())
        with run.open(waiting=console.say):
            record = run.result()  # another process may have finished it while this one waited
            if record is None:
                return "done", _train(config, run)
    check_same_source(config, record["config"].get("imports", {}), run)
    if run.checkpoint.exists() and not run.busy():
        run.checkpoint.unlink(missing_ok=True)  # of a process that was killed right after it wrote the record
    console.say(f"{run.id} is done: {run.folder}\n\n{console.layer_table(record)}")
    return "skipped", record


def _train(config: Config, run: Run) -> Record:
    try:
        with signals() as stop:
            return Training(config, run, stop).finish()
    except (UserError, OSError):
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # on CPUs torch says it so
            raise UserError("out of memory; take a smaller network or train.batch_size") from None
        with contextlib.suppress(OSError):
            run.error.write_text(traceback.format_exc())
        raise
