"""Pictures of a report, one file each, drawn from committed data alone; importing this package discovers them all.

matplotlib, an extra, is imported where it is used.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import FIGURES, Draw, Watched, figure, find

for _module in sorted(info.name for info in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["FIGURES", "Draw", "Watched", "figure", "find"]
