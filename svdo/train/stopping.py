"""Ctrl-C and SIGTERM: raised at once, or noted until what is computed can be saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with everything saved that can be."""

    def __init__(self, signal_number: int, saved: str = "") -> None:
        self.message, self.signal_number = f"stopped{saved}; repeat the command to go on", signal_number
        super().__init__(self.message)


@dataclass
class Stop:
    """Ctrl-C or SIGTERM: raised at once, but during an epoch only noted, so that the loop can save first."""

    deferred: bool = False
    number: int = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler; a second signal does not wait either."""
        if not self.deferred or self.number:
            raise Interrupted(number)
        self.number = number


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Within, Ctrl-C and SIGTERM raise ``Interrupted``, or are noted where that is asked for."""
    stop, previous = Stop(), {}
    with contextlib.suppress(ValueError):  # not the main thread: there is no handler to set
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.note)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
