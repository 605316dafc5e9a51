"""From a checked configuration to a finished record."""

from .loop import Training, execute
from .start import trained
from .stopping import Interrupted, Stop, signals

__all__ = ["Interrupted", "Stop", "Training", "execute", "signals", "trained"]
