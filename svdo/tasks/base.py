"""What is learned: a task's loss, its metrics, the figure that networks are compared by, and N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ..config import Choice
from ..data.spec import Split
from ..registry import Registry

TASKS: Registry[type[Task]] = Registry("task")


@dataclass(frozen=True)
class Headline:
    """The one figure that networks of a task are compared by: ``name`` is its key among the metrics."""

    name: str
    unit: str
    better: str = "lower"  # or higher

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is better than ``best``, the best so far, if there is one."""
        if best is None:
            return True
        return value < best if self.better == "lower" else value > best


@dataclass
class Task(Choice):
    """The likelihood and what is reported of it.

    ``outputs`` are what the network gives for the inputs of a batch, ``targets`` what belongs to these inputs. Training
    minimises ``loss`` + kl_weight KL / N.
    """

    headline: ClassVar[Headline]

    def size(self, split: Split) -> int:
        """N: by how much the KL is divided. The number of examples, or of tokens where each is predicted."""
        return len(split)

    def forward(self, model: Any, inputs: Tensor, state: Any) -> tuple[Any, Any]:
        """A training pass: outputs, and what is carried over to the next batch (None where nothing is)."""
        return model(inputs), None

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of the batch, a scalar, in nats per unit of N."""
        raise NotImplementedError

    def tally(self, outputs: Any, targets: Tensor) -> Tensor:
        """The batch's part in the training figure, a scalar on the device: these are summed over an epoch."""
        raise NotImplementedError

    def training_figure(self, total: float, examples: int) -> float:
        """The headline over an epoch, from the sum of its tallies and the number of its examples."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: Split, samples: int = 0) -> dict[str, float]:
        """Metrics on a split, ``nll`` and the headline among them; the model's mode is kept.

        ``samples=0`` is one pass of the network that evaluation uses; otherwise predictions are averaged over so many noisy
        passes.
        """
        raise NotImplementedError


T = TypeVar("T", bound=type[Task])


def task(cls: T) -> T:
    """Register a ``Task`` dataclass under its ``name``."""
    TASKS.add(cls.name, cls)
    return cls


def find(name: str) -> type[Task]:
    """The task's class; raises ``UserError`` listing the choices where there is none."""
    return TASKS.find(name)
