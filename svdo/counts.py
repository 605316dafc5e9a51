"""What evaluation removes: masks, sparsity per layer, compression. Only weights count, never biases, as in the papers."""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import require
from .layers import THRESHOLDS, NoisyLayer, check_module, check_shaped, noisy_layers, weight_layers
from .layers.choice import all_weights


@dataclass(frozen=True)
class LayerSparsity:
    """One layer's weights, how many of them evaluation uses, and the share it does not, in percent.

    ``inputs`` and ``outputs`` count the units (channels, in a convolution) that a weight still leaves or reaches.
    """

    name: str
    weights: int
    nonzero: int
    inputs: int
    outputs: int

    @property
    def sparsity(self) -> float:
        """Percent of the layer's weights that are zero."""
        return 100.0 * (1.0 - self.nonzero / self.weights) if self.weights else 0.0


def masks(module: nn.Module) -> dict[str, Tensor]:
    """For each noisy layer, by dotted name, a boolean tensor of its weight's shape: True where the weight is kept."""
    check_module("masks", module)
    with torch.no_grad():
        found = {}
        for name, layer in noisy_layers(module):
            mask = layer.noise.mask(layer.theta)
            every = torch.ones_like(layer.theta, dtype=torch.bool)
            found[name] = every if mask is None else mask & every  # a mask may be of a group's shape
        return found


@contextmanager
def at_threshold(module: nn.Module, threshold: float) -> Iterator[None]:
    """Within, ``threshold`` stands for each layer's own: a weight whose log alpha, or other score, reaches it is removed.

    Layers that remove none by a score stay.

    It holds for this thread (and asyncio task) alone. Raises ``UserError`` where ``threshold`` is no number; infinite ones
    keep or remove everything.
    """
    check_module("at_threshold", module)
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    limited = number and (abs(threshold) <= sys.float_info.max or threshold in (-math.inf, math.inf))
    require(limited, f"at_threshold: {threshold!r} is no threshold")
    noises = [layer.noise for _, layer in noisy_layers(module) if layer.noise.threshold is not None]
    token = THRESHOLDS.set({**THRESHOLDS.get(), **dict.fromkeys(noises, float(threshold))})
    try:
        yield
    finally:
        THRESHOLDS.reset(token)


def sparsity(module: nn.Module) -> list[LayerSparsity]:
    """Weights, surviving weights and units of every Linear and Conv2d layer, noisy or plain, in definition order.

    Other weights (convolutions in one or three dimensions and transposed ones, embeddings, recurrent layers, an attention's
    ``in_proj_weight``) are not counted; ``compression`` of the module has them.

    Raises:
        UserError: on a lazy layer that no pass has given its shape yet.
    """
    check_module("sparsity", module)
    weights = evaluation_weights(module)
    _check_values(weights.values())
    shapes = [(*weight.shape[:2], math.prod(weight.shape[2:])) for weight in weights.values()]
    kept = [weight.reshape(shape).count_nonzero(2) for weight, shape in zip(weights.values(), shapes, strict=True)]
    groups = [getattr(layer, "groups", 1) for _, layer in weight_layers(module)]
    counts = [
        torch.stack([n.sum(), n.unflatten(0, (g, -1)).any(1).sum(), n.any(1).sum()]) for n, g in zip(kept, groups, strict=True)
    ]
    gathered = [count.to(counts[0].device) for count in counts]
    numbers = torch.stack(gathered).tolist() if counts else []  # one transfer for the whole network, not one per layer
    return [LayerSparsity(name, weight.numel(), *n) for (name, weight), n in zip(weights.items(), numbers, strict=True)]


@torch.no_grad()
def evaluation_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that evaluation uses, 0 where removed, by the dotted name of their layer.

    Raises ``UserError`` on a lazy layer whose weight no pass has made yet.
    """
    check_module("evaluation_weights", module)
    for name, layer in weight_layers(module):
        lazy = is_lazy(layer._parameters.get("weight"))  # type: ignore[arg-type]
        require(not lazy, f"layer {name} has no weight yet; run a batch through the network first")
    return {
        name: (layer.pruned_weight() if isinstance(layer, NoisyLayer) else layer.weight).detach()
        for name, layer in weight_layers(module)
    }


def compression(counted: nn.Module | Iterable[LayerSparsity]) -> float:
    """|W| / |W != 0|; infinite where nothing is left.

    Args:
        counted: a list from ``sparsity``: over its layers, Linear and Conv2d alone; or a network: over all its weights, those
            that no method reaches included (embeddings, recurrent layers, convolutions of other dimensions), which are its
            parameters of two dimensions or more, without the methods' noise.

    Raises:
        UserError: on anything else, or a layer without weights yet.
    """
    if isinstance(counted, nn.Module):
        check_shaped(counted)
        with torch.no_grad():
            found = [weight for _, weight in all_weights(counted)]
            require(bool(found), "compression: the network has no weights to count; a quantised one hides them")
            _check_values(found)
            numbers = [(weight.numel(), int(weight.count_nonzero())) for weight in found]
    else:
        layers = list(counted) if isinstance(counted, Iterable) else [counted]
        require(
            all(isinstance(layer, LayerSparsity) for layer in layers),
            "compression takes what svdo.sparsity gives, or a network",
        )
        numbers = [(layer.weights, layer.nonzero) for layer in layers]
    weights, nonzero = sum(count for count, _ in numbers), sum(count for _, count in numbers)
    return weights / nonzero if nonzero else float("inf")


def _check_values(weights: Iterable[Tensor]) -> None:
    require(
        not any(weight.is_meta for weight in weights),
        "weights on the meta device have no values to count; load or initialise the network first",
    )


def storage(module: nn.Module) -> float:
    """How many times smaller the kept weights can be stored than all of them in float32; infinite where nothing is left.

    Of the layers that ``sparsity`` counts; what else the network stores is left out of both.
    Each layer is a list of gaps between kept weights and a list of their values. Either list takes a Huffman code with its
    table, a float32 or a 32-bit gap per entry, or, where that is shorter, 32 bits per item.
    """
    full = used = 0
    weights = evaluation_weights(module)
    _check_values(weights.values())
    for weight in weights.values():
        flat = weight.flatten().float().cpu()
        places = flat.nonzero().flatten()
        full += 32 * flat.numel()
        for items in (places.diff(prepend=places.new_zeros(1)), flat[places]):
            counts = items.unique(return_counts=True)[1].tolist()
            used += min(_huffman_bits(counts) + 32 * len(counts), 32 * len(items))
    return full / used if used else float("inf")


def _huffman_bits(counts: list[int]) -> int:
    """Length of the text in the best prefix code for symbols that occur so often: the sum of all merged weights."""
    heap, total = list(counts), 0
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total
