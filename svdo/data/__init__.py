"""Data sets: where they come from, and how a run sees them."""

from .images import Data, Normalizer, Split, prepare
from .sources import Images, UnavailableError, fetch, load

__all__ = ["Data", "Images", "Normalizer", "Split", "UnavailableError", "fetch", "load", "prepare"]
