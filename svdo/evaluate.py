"""How good a network is: error, negative log-likelihood, calibration; one deterministic pass, or averaged over samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import Split
from .errors import require
from .layers import check_module, sampling

ECE_BINS = 15
CHUNK = 500  # larger chunks leave the cache on CPUs and gain nothing on GPUs at these image sizes


@torch.no_grad()
def log_probabilities(model: nn.Module, split: Split, samples: int = 0) -> Tensor:
    """Predicted log class probabilities of every image in order, (N, classes) float32; the model's mode is kept.

    ``samples=0`` is one pass of the thresholded mean network; otherwise probabilities are averaged over so many noisy passes.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if not samples:
            return torch.cat([F.log_softmax(model(x).float(), dim=1) for x, _ in split.chunks(CHUNK)])
        with sampling(model):
            passes = [
                torch.stack([F.log_softmax(model(x).float(), dim=1) for _ in range(samples)]).logsumexp(0)
                for x, _ in split.chunks(CHUNK)
            ]
        return torch.cat(passes) - torch.tensor(float(samples)).log()
    finally:
        for module, was_training in modes:
            module.training = was_training


def metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """``error`` and ``ece`` in percent, ``nll`` in nats and ``brier`` (sum over classes), means over images.

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
    """``metrics`` of the model on a split; see ``log_probabilities`` for ``samples``."""
    return metrics(log_probabilities(model, split, samples), split.labels)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of each predicted distribution; (N, classes) -> (N,)."""
    return -(log_probs.exp() * log_probs).sum(1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance, in percent, that a score from ``outside`` exceeds one from ``inside``, ties counting half; both (N,)."""
    ordered = inside.double().sort().values
    below = torch.searchsorted(ordered, outside.double().contiguous())
    up_to = torch.searchsorted(ordered, outside.double().contiguous(), right=True)
    return 50.0 * ((below + up_to).double().mean() / len(ordered)).item()


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Set the running means and variances of batch norm to those of the thresholded mean network over ``batches`` of inputs.

    Training sees activations with noise and with the weights that are removed later, so its running statistics are not those of
    the network that is evaluated. Take batches as training augments them: the layers are used to those. All batches, tensors
    that the model takes, count alike; one smaller than the first is left out. A batch norm that no batch reaches keeps its
    statistics. Returns whether there was a batch norm. The model's modes are kept.

    Raises:
        UserError: where there are no batches, or one is no tensor; the statistics then stay what they were, as they do when
            the model fails.
    """
    check_module("reestimate_batch_norm", model)
    require(not isinstance(batches, Tensor), "batches is one tensor; give a list of batches")
    require(isinstance(batches, Iterable), f"batches is a {type(batches).__name__}; give a list of batches")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return False
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
            norm.train()
        size = 0
        for x in batches:
            require(isinstance(x, Tensor), f"a batch is a {type(x).__name__}; give the inputs alone: (x for x, _ in loader)")
            size = size or len(x)
            if len(x) >= size:
                model(x)
        require(size > 0, "no batches to estimate batch norm from")
        for norm, buffers in zip(norms, before, strict=True):
            if not norm.num_batches_tracked:
                norm.load_state_dict(buffers, strict=False)
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, was_training in modes:
            module.training = was_training
    return True
