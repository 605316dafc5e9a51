"""Ways to draw the noise of a network in training, and the variance of the gradients they give (Kingma et al. 2015, section 2).

For a minibatch of M examples of N, the variance of the estimated gradient is N^2 (Var[L_i] / M + (M - 1) / M Cov[L_i, L_j]):
what the examples share, such as one draw of the weights, does not average out.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Split
from ...layers import NoisyLayer, noisy_layers

ESTIMATORS = ("local", "separate", "single", "none")
GROUPS = 20  # of minibatches, whose estimates of a variance tell its standard error
EXAMPLES_AT_ONCE = 10  # with a draw of all weights for each example: more would not fit a cache, and soon no memory


def _separate(layer: NoisyLayer, x: Tensor) -> Tensor:
    mean, deviation = _posterior(layer)
    weights = mean + deviation * torch.randn(len(x), *mean.shape, device=x.device)
    output = torch.bmm(weights, x.unsqueeze(2)).squeeze(2)
    return output if layer.bias is None else output + layer.bias


def _single(layer: NoisyLayer, x: Tensor) -> Tensor:
    mean, deviation = _posterior(layer)
    return layer.product(x, mean + deviation * torch.randn_like(mean), layer.bias)


def _none(layer: NoisyLayer, x: Tensor) -> Tensor:
    return layer.product(x, layer.theta, layer.bias)


def _posterior(layer: NoisyLayer) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        layer.noise.project()
    mean, variance = layer.noise.posterior(layer.theta)
    return mean, torch.zeros_like(mean) if variance is None else variance.sqrt()


FORWARD: dict[str, Callable[[NoisyLayer, Tensor], Tensor]] = {"separate": _separate, "single": _single, "none": _none}


@contextmanager
def drawn(model: nn.Module, estimator: str) -> Iterator[None]:
    """Within, the noisy layers of ``model``, in training mode, draw their noise in one of ``ESTIMATORS``' ways.

    ``local``: as always, for every output (the local reparameterization); ``separate``: all weights for every example, for
    dense layers on (M, in); ``single``: all weights once for the minibatch; ``none``: not at all, the weights are theta.
    """
    layers = [layer for _, layer in noisy_layers(model)]
    try:
        for layer in layers if estimator != "local" else ():
            layer.forward = partial(FORWARD[estimator], layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def gradient_variance(
    model: nn.Module, split: Split, estimator: str, layers: Sequence[str], batches: int, size: int = 1000
) -> dict[str, list[float]]:
    """Variance of the gradient of sum_n log p(y_n | x_n, w), N / M times a minibatch's, by the weights of each named layer.

    It is taken over so many ``batches`` of M = ``size`` examples, or all where there are fewer, with fresh noise, and averaged
    over the layer's weights: one estimate for each of up to ``GROUPS`` groups of them (``mean_and_error``). Other estimators
    and other noise get the same minibatches, so that groups can be compared in pairs.

    With a draw of all weights for each example, the examples' gradients are independent, and the variance is that of smaller
    minibatches, scaled: as many times more of them tell it so much better. The KL is the same for every minibatch and adds
    nothing. Images are flattened, for dense networks; the model is left in training mode, the global generator seeded.
    """
    size = min(size, len(split))
    at_once = min(EXAMPLES_AT_ONCE, size) if estimator == "separate" else size
    model.train()
    parameters = [model.get_parameter(f"{name}.weight") for name in layers]

    def gradients() -> Iterator[Sequence[Tensor]]:
        for number, (x, y) in zip(range(batches), _endless(split, size), strict=False):
            torch.manual_seed(number)
            for part, labels in zip(x.flatten(1).split(at_once), y.split(at_once), strict=True):
                if len(part) == at_once:
                    loss = F.cross_entropy(model(part), labels, reduction="sum") * (len(split) / size)
                    yield torch.autograd.grad(loss, parameters)

    draws = batches * (size // at_once)
    groups = max(1, min(GROUPS, draws // 2))
    in_group = [draws // groups + (number < draws % groups) for number in range(groups)]
    with drawn(model, estimator):
        stream = gradients()
        found = [_variances(itertools.islice(stream, count)) for count in in_group]
    return {name: [value * size / at_once for value in values] for name, *values in zip(layers, *found, strict=True)}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent estimates, and its standard error: 0 where there is one alone."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _variances(draws: Iterable[Sequence[Tensor]]) -> list[float]:
    """Of each tensor over the draws, the variance, averaged over its elements."""
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    for count, gradients in enumerate(draws, 1):
        if count == 1:
            sums, squares = ([torch.zeros_like(g, dtype=torch.float64) for g in gradients] for _ in range(2))
        for total, square, gradient in zip(sums, squares, gradients, strict=True):
            total += gradient
            square += gradient.double().square()
    spread = [(square - total.square() / count) / (count - 1) for total, square in zip(sums, squares, strict=True)]
    return [value.mean().item() for value in spread]


def _endless(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from split.batches(size, 0, epoch)
        epoch += 1
