"""The run store: what a run leaves on disk, and how it is found again."""

from .record import Record
from .store import REBUILT, Run, copies, finished, with_weights

__all__ = ["REBUILT", "Record", "Run", "copies", "finished", "with_weights"]
