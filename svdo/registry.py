"""Choices by name: what a decorator line registers, the command line offers."""

from __future__ import annotations

from typing import Any, TypeVar

from .errors import UserError

T = TypeVar("T")


class Registry(dict[str, T]):
    """The choices of one kind (``kind`` as it is written on the command line: method, model, ...), by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, choice: T) -> None:
        """Register ``choice``; raises ``UserError`` where it has no name, or another module has taken it."""
        if not name:
            raise UserError(f"{_place(choice)} has no name; give it one: name: str = ...")
        if name in self and _place(self[name]) != _place(choice):
            raise UserError(
                f"{_place(choice)}: the name {name} is taken, by the {self.kind} {_place(self[name])}; choose another"
            )
        self[name] = choice

    def find(self, name: str) -> T:
        """The choice called ``name``; raises ``UserError`` listing all where there is none."""
        if name not in self:
            raise UserError(f"{self.kind}={name} is not a choice; take one of: {', '.join(self)}")
        return self[name]


def _place(choice: Any) -> str:
    return f"{choice.__module__}.{choice.__qualname__}"
