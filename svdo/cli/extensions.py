"""``import=my.module``: modules of the user's, loaded before anything is composed, whose registered classes become choices."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, require

KEY = "import="
HANDED_ON = "SVDO_IMPORT"  # to the processes that a sweep's launcher starts


def take(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``import=...``, whose modules are loaded, with those that a parent process handed on.

    Raises:
        UserError: where a module cannot be imported.
    """
    given = [argument.removeprefix(KEY) for argument in arguments if argument.startswith(KEY)]
    names = [name for text in [os.environ.get(HANDED_ON, ""), *given] for name in text.split(",") if name]
    for text in given:
        require(bool(text), "import= names no module; write import=my.module, as Python would import it")
    if names:
        load(names)
        os.environ[HANDED_ON] = ",".join(dict.fromkeys(names))
    return [argument for argument in arguments if not argument.startswith(KEY)]


def load(names: Sequence[str]) -> None:
    """Import the modules, those in the working folder included; raises ``UserError`` where one cannot be."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except UserError as error:
            raise UserError(f"import={name}: {error}") from None
        except Exception as error:  # whatever a module of the user's may raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if isinstance(error, ModuleNotFoundError) else f" ({Path(where.filename).name}, line {where.lineno})"
            raise UserError(f"import={name} failed: {type(error).__name__}: {error}{place}") from None


def origins(choices: Sequence[Any]) -> dict[str, str]:
    """The modules outside svdo that these classes and functions come from, each with the SHA-256 of its source."""
    names = sorted({choice.__module__ for choice in choices if choice.__module__.split(".")[0] != "svdo"})
    return {name: _sha256(name) for name in names}


def _sha256(name: str) -> str:
    file = getattr(sys.modules.get(name), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
