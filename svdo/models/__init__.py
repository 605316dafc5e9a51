"""One file per family of networks; importing this package discovers and registers them all, by name."""

from importlib import import_module
from pkgutil import iter_modules

from .base import MODELS, Model, build, find, initialise, model, outline

for _module in sorted(info.name for info in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["MODELS", "Model", "build", "find", "initialise", "model", "outline"]
