"""The run store: what a run leaves on disk, and how it is found again."""

from .record import Record, config_of, data_of
from .store import REBUILT, Run, copies, with_weights

__all__ = ["REBUILT", "Record", "Run", "config_of", "copies", "data_of", "with_weights"]
