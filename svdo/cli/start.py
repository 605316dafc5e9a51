"""How a program starts: with three streams, and with Ctrl-C as one line from the first moment on. Imports nothing slow."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def svdo_run() -> None:
    """``svdo-run``."""
    start("svdo.cli.run")


def svdo_report() -> None:
    """``svdo-report``."""
    start("svdo.report.cli")


def svdo_export() -> None:
    """``svdo-export``."""
    start("svdo.cli.export")


def start(module: str) -> None:
    """Call ``main`` of ``module``, which turns signals into exceptions of its own once its imports are done."""
    mend_streams()
    for number in SIGNALS:
        signal.signal(number, _stop_at_once)
    try:
        importlib.import_module(module).main()
    except BrokenPipeError:  # the reader of our messages has left, too: nobody to tell
        sys.exit(141)
    finally:
        _leave()


def mend_streams() -> None:
    """Give the process the streams that whoever started it closed, and let none of them fail on a character.

    A closed descriptor would be taken by the next file that is opened, which a message of ours would then overwrite. A
    terminal that lacks ± or α shows a question mark there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free, which is this one
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - they live as long as we do
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _stop_at_once(number: int, _: FrameType | None) -> None:
    """Nothing has begun that could be saved, and out of a half-done import an exception would be swallowed, or printed."""
    os.write(2, b"svdo: stopped\n")
    os._exit(128 + number)


def _leave() -> None:
    """What is left to do takes no stopping; what could not be written by now will not be, and Python would complain of it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
