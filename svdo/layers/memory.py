"""What evaluation remembers of a layer from one pass to the next: its mask, and its weight with zeros where that removes.

A mask costs many times what a small product does. It is remembered with the identity, version and place of every tensor that it
was computed from, until any optimizer makes a step, fused ones writing past the versions, or an attribute of a noise is set.
Nothing of it is part of the module, its copies, pickles and states.
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

    stamp: list[Any]
    sources: list[Any]  # whose identities stand in the stamp: none may be freed and its identity taken by another
    mask: Tensor | None
    weight: Tensor
    version: int  # the weight's, when it was made


_KEPT: WeakKeyDictionary[NoisyLayer, Kept] = WeakKeyDictionary()
_numbers = itertools.count(1)
_changes = 0


def changed(*_: Any) -> None:
    """Have every layer of the process compute anew: an optimizer has made a step, or a noise's attribute was set."""
    global _changes
    _changes = next(_numbers)


register_optimizer_step_post_hook(changed)


def forget(layer: NoisyLayer) -> None:
    """Have the layer's next pass compute anew."""
    _KEPT.pop(layer, None)


def recall(layer: NoisyLayer, thresholds: object) -> Kept | None:
    """What holds for the layer as it is now; None inside a trace or a transform, where nothing may be remembered.

    Raises:
        UserError: where the weight that ``layer.weight`` gave out has been written to.
    """
    theta = layer.theta
    if torch.compiler.is_compiling() or torch._C._is_tracing() or type(theta) is not nn.Parameter or theta.is_meta:
        return None
    sources = [theta, thresholds, *_tensors(layer._modules["noise"])]
    try:
        stamp = _stamp(sources)
        kept = _KEPT.get(layer)
        if kept is None or kept.stamp != stamp:
            kept = _made(layer, stamp, sources)
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


def _tensors(noise: nn.Module | None) -> list[Tensor | None]:
    """Every tensor that a mask may be computed from beside the weight."""
    assert noise is not None
    if noise._modules:
        return [*noise.parameters(), *noise.buffers()]
    return [*noise._parameters.values(), *noise._buffers.values()]


def _stamp(sources: list[Any]) -> list[Any]:
    found: list[Any] = [_changes]
    for source in sources:
        found.append(id(source))
        if isinstance(source, Tensor):
            found += (source._version, source.data_ptr())
    if sources[0].is_cuda:  # what one stream has written another may not see yet
        found.append(torch.cuda.current_stream(sources[0].device))
    return found


def _made(layer: NoisyLayer, stamp: list[Any], sources: list[Any]) -> Kept:
    theta = layer.theta
    with torch.inference_mode(False), torch.no_grad():
        mask = layer.noise.mask(theta)
        if mask is None or bool(mask.all()):
            return Kept(stamp, sources, None, theta, theta._version)
        weight = torch.where(mask, theta, 0.0)
        return Kept(stamp, sources, mask, weight, weight._version)
