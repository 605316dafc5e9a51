"""From a checked configuration to a finished record."""

from .entry import execute
from .loop import Training
from .start import trained
from .stopping import Interrupted, Stop, signals

__all__ = ["Interrupted", "Stop", "Training", "execute", "signals", "trained"]
