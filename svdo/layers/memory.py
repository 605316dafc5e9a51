"""What evaluation remembers of a layer from one pass to the next: its mask, and its weight with zeros where that removes.

A mask costs many times what a small product does. It is remembered with the identity, version and place of every tensor, and
the identity of every attribute, that it was computed from, and with the number of optimizer steps taken anywhere in the
process: fused optimizers write past the versions. Nothing of it is part of the module, its copies, pickles and states.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import UserError

if TYPE_CHECKING:
    from .base import NoisyLayer


class Kept(NamedTuple):
    """A layer's mask (None: it removes nothing) and thresholded weight, and what they hold for."""

    stamp: tuple[Any, ...]
    sources: list[Any]  # whose identities stand in the stamp: none may be freed and its identity taken by another
    mask: Tensor | None
    weight: Tensor
    version: int  # the weight's, when it was made


_KEPT: WeakKeyDictionary[NoisyLayer, Kept] = WeakKeyDictionary()
_STEPS = itertools.count(1)
_step = 0


def _count_step(*_: Any) -> None:
    global _step
    _step = next(_STEPS)


register_optimizer_step_post_hook(_count_step)


def forget(layer: NoisyLayer) -> None:
    """Have the next pass compute anew."""
    _KEPT.pop(layer, None)


def recall(layer: NoisyLayer) -> Kept | None:
    """What holds for the layer as it is now; None inside a trace or a transform, where nothing may be remembered.

    Raises:
        UserError: where the weight that ``layer.weight`` gave out has been written to.
    """
    theta = layer.theta
    if torch.compiler.is_compiling() or torch._C._is_tracing() or type(theta) is not nn.Parameter or theta.is_meta:
        return None
    sources = _sources(layer.noise)
    try:
        stamp = _stamp(theta, sources, layer.noise.threshold)
        kept = _KEPT.get(layer)
        if kept is None or kept.stamp != stamp:
            kept = _made(layer, stamp, [theta, *sources])
            kept.weight.data_ptr()
            _KEPT[layer] = kept
    except RuntimeError:  # tensors of inference mode have no version, those inside torch.func's transforms no place
        return None
    if kept.weight._version != kept.version and kept.weight is not theta:
        forget(layer)
        raise UserError(
            f"the weight of a {type(layer).__name__} was written to in evaluation mode, where it is a copy with removed weights"
            " at 0; write to its parameter, layer.theta, instead"
        )
    return kept


def _sources(noise: nn.Module) -> list[Any]:
    """All that a mask may be computed from beside the weight."""
    parts = noise.modules() if noise._modules else (noise,)
    found: list[Any] = []
    for part in parts:
        found += part.__dict__.values()
        found += part._parameters.values()
        found += part._buffers.values()
    return found


def _stamp(theta: Tensor, sources: list[Any], threshold: float | None) -> tuple[Any, ...]:
    tensors = [theta, *(source for source in sources if isinstance(source, Tensor))]
    stream = torch.cuda.current_stream(theta.device) if theta.is_cuda else None  # what one has written another may not see yet
    return (
        _step,
        threshold,
        stream,
        *map(id, sources),
        *((id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors),
    )


def _made(layer: NoisyLayer, stamp: tuple[Any, ...], sources: list[Any]) -> Kept:
    theta = layer.theta
    with torch.inference_mode(False), torch.no_grad():
        mask = layer.noise.mask(theta)
        if mask is None or bool(mask.all()):
            return Kept(stamp, sources, None, theta, theta._version)
        weight = torch.where(mask, theta, 0.0)
        return Kept(stamp, sources, mask, weight, weight._version)
