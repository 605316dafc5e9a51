"""What no run's record holds, one file each; importing this package discovers them all.

scipy, an extra, is imported where it is used.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import MEASURES, TOY, Effort, Measure, Networks, find, measure

for _module in sorted(info.name for info in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["MEASURES", "TOY", "Effort", "Measure", "Networks", "find", "measure"]
