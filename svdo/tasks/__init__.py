"""One file per task; importing this package discovers and registers them all, by name."""

from importlib import import_module
from pkgutil import iter_modules

from .base import TASKS, Headline, Task, find, task

for _module in sorted(info.name for info in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["TASKS", "Headline", "Task", "find", "task"]
