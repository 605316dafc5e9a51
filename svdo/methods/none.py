"""No noise: the plain network, the reference every method is held against."""

from dataclasses import dataclass
from typing import ClassVar

from ..layers import NoisyLayer
from .base import Method, method


@method
@dataclass
class Plain(Method):
    """The network as it is; B = A theta."""

    label: ClassVar[str] = "No dropout"
    name: str = "none"

    def noise(self, layer: NoisyLayer, name: str) -> None:
        """No layer is noisy."""
