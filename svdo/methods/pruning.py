"""Magnitude pruning (Han, Pool, Tran, Dally 2015): train, remove small weights, retrain the rest; again, a little more.

    a weight of a layer is removed where |w| < q std(w of that layer)

The threshold grows from q / rounds to q in equal turns, each followed by training of the survivors from where they stood, with
the mask fixed. L2 decay, which the paper found better than L1 when retraining, is ``train.weight_decay``. Biases stay.
Published: LeNet-300-100 from 1.64 to 1.59 % error and LeNet-5 from 0.80 to 0.77 %, both with a twelfth of the weights.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..config import check_mapping
from ..errors import require
from ..layers import NoisyLayer
from .base import Method, Removal, check_phase, method, of_layer


class Magnitude(Removal):
    """A mask that shrinks at the given shares of training; a removed weight stays removed."""

    spread: Tensor

    def __init__(self, layer: NoisyLayer, settings: "Pruning", quality: float) -> None:
        super().__init__(layer)
        self.settings, self.quality = settings, quality
        self.register_buffer("spread", layer.theta.new_zeros(()))

    def posterior(self, weight: Tensor) -> tuple[Tensor, None]:
        """The surviving weights; nothing is random."""
        return self.remaining(weight), None

    def advance(self, weight: Tensor, step: int, steps: int) -> None:
        """Remove |w| < q turn / rounds std(w), with the standard deviation that the layer had at the first turn."""
        before, turn = self.settings.turns(step - 1, steps), self.settings.turns(step, steps)
        if turn == before:
            return
        if before == 0:
            self.spread.copy_(weight.std(correction=0))
        limit = self.quality * turn / self.settings.rounds * self.spread
        self.keep(self.mask(weight) & (weight.abs() >= limit))


@method
@dataclass
class Pruning(Method):
    """``quality``: q per layer, by shell pattern; ``start``, ``stop``: shares of training of the first and last removal."""

    label: ClassVar[str] = "Pruning"
    sparsifies: ClassVar[bool] = True
    name: str = "pruning"
    quality: dict[str, float] = field(default_factory=dict)  # left out: 1.5 everywhere
    start: float = 0.3
    stop: float = 0.7
    rounds: int = 10

    def noise(self, layer: NoisyLayer, name: str) -> Magnitude:
        """A mask on every layer; a layer that no pattern matches keeps all its weights."""
        return Magnitude(layer, self, of_layer(self.quality or {"*": 1.5}, name, 0.0))

    def turns(self, step: float, steps: int) -> int:
        """How many turns have come when ``step`` of ``steps`` are done; found by halving, since there may be many."""

        def due(turn: int) -> float:
            return (self.start + (self.stop - self.start) * turn / max(self.rounds - 1, 1)) * steps

        return bisect_right(range(self.rounds), step, key=due)

    def check(self) -> None:
        """Raise ``UserError`` on phases out of order, no rounds, or a negative quality."""
        check_phase(self.start, self.stop)
        check_mapping("method.quality", self.quality)
        require(self.rounds >= 1, f"method.rounds={self.rounds} is too small; it must be at least 1")
        for pattern, quality in self.quality.items():
            require(quality >= 0.0, f"method.quality[{pattern}]={quality} must not be negative")
