"""Classification: cross-entropy; error, calibration; one deterministic pass, or averaged over samples."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.spec import Split
from ..layers import sampling
from .base import Headline, Task, task

ECE_BINS = 15
CHUNK = 500  # larger chunks leave the cache on CPUs and gain nothing on GPUs at these image sizes


@torch.no_grad()
def predictions(model: nn.Module, split: Split, samples: int = 0) -> tuple[Tensor, Tensor]:
    """Predicted log class probabilities, (N, classes) float32, and class numbers, (N,), in order; the model's mode is kept.

    ``samples=0`` is one pass of the network that evaluation uses; otherwise probabilities are averaged over so many noisy
    passes.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    found: list[Tensor] = []
    targets: list[Tensor] = []
    try:
        with sampling(model) if samples else contextlib.nullcontext():
            for x, y in split.chunks(CHUNK):
                passes = [F.log_softmax(model(x).float(), dim=1) for _ in range(samples or 1)]
                found.append(torch.stack(passes).logsumexp(0) if samples else passes[0])
                targets.append(y)
    finally:
        for module, was_training in modes:
            module.training = was_training
    log_probs = torch.cat(found)
    return (log_probs - torch.tensor(float(samples)).log() if samples else log_probs), torch.cat(targets)


def log_probabilities(model: nn.Module, split: Split, samples: int = 0) -> Tensor:
    """The first of ``predictions``."""
    return predictions(model, split, samples)[0]


def metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """``error`` and ``ece`` in percent, ``nll`` in nats and ``brier`` (sum over classes), means over examples.

    Args:
        log_probs: (N, classes).
        labels: (N,), class numbers.
    """
    probabilities = log_probs.exp()
    confidence, predicted = probabilities.max(1)
    correct = (predicted == labels).float()
    one_hot = F.one_hot(labels, log_probs.shape[1])
    return {
        "error": 100.0 * (1.0 - correct.double().mean().item()),
        "nll": F.nll_loss(log_probs.double(), labels).item(),
        "ece": 100.0 * _calibration_error(confidence, correct),
        "brier": (probabilities.double() - one_hot).square().sum(1).mean().item(),
    }


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over equal bins of confidence."""
    bins = (confidence.nan_to_num(0.0) * ECE_BINS).long().clamp_(max=ECE_BINS - 1)  # what is not finite shows in the NLL
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64, device=bins.device)
    gaps.index_add_(0, bins, (correct - confidence).double())
    return (gaps.abs().sum() / len(confidence)).item()


def evaluate(model: nn.Module, split: Split, samples: int = 0) -> dict[str, float]:
    """``metrics`` of the model on a split; see ``predictions`` for ``samples``."""
    return metrics(*predictions(model, split, samples))


@task
@dataclass
class Classification(Task):
    """Outputs are logits, (batch, classes); targets are class numbers, (batch,)."""

    headline: ClassVar[Headline] = Headline("error", "%")
    name: str = "classification"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs.float(), targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The number of wrong answers."""
        return (outputs.argmax(1) != targets).sum()

    def training_figure(self, total: float, examples: int) -> float:
        """Percent of wrong answers."""
        return 100.0 * total / examples

    def evaluate(self, model: nn.Module, split: Split, samples: int = 0) -> dict[str, float]:
        """``error`` and ``ece`` in percent, ``nll`` in nats, ``brier``."""
        return evaluate(model, split, samples)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of each predicted distribution; (N, classes) -> (N,)."""
    return -(log_probs.exp() * log_probs).sum(1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance, in percent, that a score from ``outside`` exceeds one from ``inside``, ties counting half; both (N,)."""
    ordered = inside.double().sort().values
    below = torch.searchsorted(ordered, outside.double().contiguous())
    up_to = torch.searchsorted(ordered, outside.double().contiguous(), right=True)
    return 50.0 * ((below + up_to).double().mean() / len(ordered)).item()
