"""Dynamic network surgery (Guo, Yao, Chen 2016): small weights are removed while training goes on, and come back if they grow.

    t = mean |w| + c std |w| per layer, once;   removed where |w| <= 0.9 t,   back (spliced) where |w| > 1.1 t

The network computes with W o T, and the gradient by W o T moves all of W, removed weights too. A mask is looked at with
probability (1 + gamma i)^-power at the i-th step of the surgery. Unlike the authors' code, biases are never removed.
Published: LeNet-300-100 1.99 % error at 56x, LeNet-5 0.91 % at 108x.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..config import check_mapping
from ..errors import require
from ..layers import NoisyLayer
from ..math import schedule
from .base import Method, Removal, check_phase, method, of_layer

REMOVE, SPLICE = 0.9, 1.1


class Surgery(Removal):
    """The mask T and the layer's t."""

    limit: Tensor

    def __init__(self, layer: NoisyLayer, settings: "DNS", crispness: float) -> None:
        super().__init__(layer)
        self.settings, self.crispness = settings, crispness
        self.register_buffer("limit", layer.theta.new_zeros(()))

    def posterior(self, weight: Tensor) -> tuple[Tensor, None]:
        """W o T with the gradient of W; nothing is random."""
        with torch.no_grad():
            removal = self.remaining(weight).sub_(weight)
        return weight + removal, None

    def advance(self, weight: Tensor, step: int, steps: int) -> None:
        """Set t at the start of the surgery; from there to its stop, remove and splice by chance."""
        settings = self.settings
        size = weight.abs()
        if schedule.reached(settings.start, step, steps):
            self.limit.copy_((size.mean() + self.crispness * size.std(correction=0)).clamp_min(0.0))
        if settings.start * steps <= step < settings.stop * steps:
            chance = (1.0 + settings.gamma * (step - settings.start * steps)) ** -settings.power
            if torch.rand(()).item() < chance:
                # As numbers, 1 where true, and in place: with booleans this takes several times as long, in most steps.
                torch.maximum(self.removed, size.clone().le_(REMOVE * self.limit), out=self.removed)
                self.removed.mul_(size.le_(SPLICE * self.limit))


@method
@dataclass
class DNS(Method):
    """``crispness``: c per layer, by shell pattern; ``start``, ``stop``: the shares of training between which masks change."""

    label: ClassVar[str] = "DNS"
    sparsifies: ClassVar[bool] = True
    name: str = "dns"
    crispness: dict[str, float] = field(default_factory=dict)  # left out: 1 everywhere
    start: float = 0.3
    stop: float = 0.8
    gamma: float = 1e-4
    power: float = 1.0

    def noise(self, layer: NoisyLayer, name: str) -> Surgery | None:
        """A mask on every layer that a pattern matches; the others stay plain."""
        values = self.crispness or {"*": 1.0}
        crispness = of_layer(values, name, float("-inf"))
        return None if crispness == float("-inf") else Surgery(layer, self, crispness)

    def check(self) -> None:
        """Raise ``UserError`` on phases out of order, or a negative gamma or power."""
        check_phase(self.start, self.stop)
        check_mapping("method.crispness", self.crispness)
        for key in ("gamma", "power"):
            require(getattr(self, key) >= 0.0, f"method.{key}={getattr(self, key)} must not be negative")
