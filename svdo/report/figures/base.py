"""What a figure is, and the registry that the ``@figure`` line of each figure's file fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ...methods import Method
from ..evidence import Evidence, Planned


@dataclass(frozen=True)
class Watched:
    """A run that was looked at closely, and what ``watch`` saw of it."""

    run: Planned
    seen: dict[str, np.ndarray]

    @property
    def method(self) -> str:
        """The method as tables write it."""
        method = self.run.config.method
        assert isinstance(method, Method)
        return method.label

    @property
    def title(self) -> str:
        """The network as papers write it."""
        name = self.run.config.model.name
        return {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}.get(name, name)


Draw = Callable[[Evidence, Sequence[Watched]], dict[str, bytes]]
FIGURES: dict[str, Draw] = {}


def figure(name: str) -> Callable[[Draw], Draw]:
    """Register a function under the name by which ``draw`` in ``conf/report/`` calls it; it gives file contents by suffix."""

    def register(draw: Draw) -> Draw:
        FIGURES[name] = draw
        return draw

    return register


def find(name: str) -> Draw:
    """The function that draws the figure called ``name``; raises ``UserError`` listing the choices where there is none."""
    if name not in FIGURES:
        raise UserError(f"no figure is drawn by {name}; take one of: {', '.join(sorted(FIGURES))}")
    return FIGURES[name]
