"""``svdo-run``: compose, check, call."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .. import train
from ..config import Config
from ..errors import UserError
from ..runs import Run
from . import compose, extensions, sweep
from .start import mend_streams


def main() -> None:
    """Exit status: 0 done or already done, 1 a failure of the program, 2 a mistake of the user's, 130 or 143 stopped."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback of its own
    sweep.register()
    with exit_status(), train.signals():
        sys.argv[1:] = extensions.take(sys.argv[1:])
        compose.register_choices()
        _check_flags()
        _hydra_main()


def _check_flags() -> None:
    """Hydra's parser would print a screen of usage beside what is wrong."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message} (svdo-run --help)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """Turn what a user can mend into one line and status 2, a stop into its message and the signal's status; warnings, too."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"svdo: warning: {message}", file=sys.stderr, flush=True)
            yield
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(compose.explain(error), 2)
    except (AttributeError, TypeError, ValueError) as error:
        if not _raised_in_hydra(error):
            raise
        _fail(compose.explain(error), 2)
    except BrokenPipeError:  # the reader of our output has left: nobody to tell
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 2)
    except train.Interrupted as stop:
        _fail(stop.message, 128 + stop.signal_number)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _raised_in_hydra(error: BaseException) -> bool:
    """Composition raises some mistakes, such as train=null and train=[1,2], as plain ``ValueError`` or ``TypeError``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] in ("hydra", "omegaconf")


def _fail(message: str, status: int) -> None:
    print(f"svdo: {message}", file=sys.stderr, flush=True)
    sys.exit(status)


@hydra.main(version_base="1.3", config_path=f"pkg://{compose.CONF}", config_name="config")
def _hydra_main(cfg: DictConfig) -> sweep.Outcome | None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _job(cfg)
    with exit_status():  # here, since Hydra announces an exception with a line of its own
        train.execute(compose.check(cfg, HydraConfig.get().overrides.task))
    return None


def _job(cfg: DictConfig) -> sweep.Outcome:
    """One job of a multirun: its failure is noted and shown, and the others go on."""
    mend_streams()  # a launcher's process has its own
    extensions.take([])
    job = HydraConfig.get()
    outcome: sweep.Outcome = {
        "label": job.job.override_dirname,
        "overrides": compose.given(job.overrides.task),
        "id": None,
        "exit": 0,
        "message": "",
    }
    config: Config | None = None
    try:
        print(f"\n=== {job.job.num + 1}: {job.job.override_dirname or 'defaults'}", flush=True)
        config = compose.check(cfg, job.overrides.task)
        outcome |= {"id": config.id, "results_dir": config.results_dir}
        outcome["status"], _ = train.execute(config)
    except BrokenPipeError:  # as in exit_status, but here, since Hydra announces an exception with a line of its own
        sys.exit(141)
    except Exception as error:
        mistaken = isinstance(error, UserError | OSError | OmegaConfBaseException)
        outcome["status"], outcome["exit"] = "failed", 2 if mistaken else 1
        outcome["message"] = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"svdo: {outcome['message']}", file=sys.stderr, flush=True)
        if outcome["exit"] == 1 and config is not None:
            outcome["message"] += f" (traceback: {Run(config.results_dir, config.id).error})"
    return outcome
