"""Data sets: where they come from, and how a run sees them."""

from .images import Data, Normalizer, Split, check_counts, prepare
from .sources import Images, UnavailableError, fetch, load

__all__ = ["Data", "Images", "Normalizer", "Split", "UnavailableError", "check_counts", "fetch", "load", "prepare"]
