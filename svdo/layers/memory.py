"""What evaluation remembers of a layer from one pass to the next: the weight that it computes with.

A mask costs many times what a small product does. The layer's ``kept`` has the weight until

* an optimizer makes a step (fused ones write past the versions), or an attribute of a noise is set: ``changed``;
* a tensor that it was computed from is another one, is written to or lies elsewhere: ``Source``;
* ``train()``, ``eval()`` or ``plain`` say so: ``forget``.

It is no part of the layer's copies, pickles and states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import UserError

_moment = object()  # another one after each change that no tensor shows


def changed(*_: Any) -> None:
    """Have every layer of the process compute anew: an optimizer has made a step, or a noise's attribute was set."""
    global _moment
    _moment = object()


register_optimizer_step_post_hook(changed)


class Source(NamedTuple):
    """A parameter or buffer of a layer or its noise: which one stands where, and what shows that it is as it was."""

    holder: dict[str, Any]
    key: str
    tensor: Tensor
    version: int
    place: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A layer's weight in evaluation, and what it holds for."""

    weight: Tensor
    version: int | None  # the weight's, when it was made; None where it is the parameter itself
    follows: bool  # whether the weight's gradient reaches the parameter
    noise: nn.Module
    sources: list[Source]
    thresholds: object
    moment: object
    stream: object  # on a GPU: what one stream has written another may not see yet

    def holds(self, noise: object, thresholds: object) -> bool:
        """Whether nothing has changed since."""
        if self.moment is not _moment or self.noise is not noise or self.thresholds is not thresholds:
            return False
        for holder, key, tensor, version, place, trained in self.sources:
            if holder.get(key) is not tensor or tensor._version != version:
                return False
            if tensor.data_ptr() != place or tensor.requires_grad is not trained:
                return False
        return self.stream is None or self.stream == torch.cuda.current_stream(self.weight.device)

    @property
    def written(self) -> bool:
        """Whether someone has written to the weight, a copy that nothing but evaluation would ever see."""
        return self.version is not None and self.weight._version != self.version


class Layer(Protocol):
    """What is asked of a noisy layer here."""

    kept: Kept | None
    noise: Any
    _parameters: Any

    @property
    def theta(self) -> Tensor:
        """The weight parameter."""
        ...


def forget(layer: Layer) -> None:
    """Have the layer's next pass compute anew.

    Raises:
        UserError: where the weight that ``layer.weight`` gave out has been written to.
    """
    kept, layer.kept = layer.kept, None
    if kept is not None and kept.written:
        raise UserError(
            f"the weight of a {type(layer).__name__} was written to in evaluation mode, where it is a copy with removed weights"
            " at 0; write to its parameter, layer.theta, instead"
        )


def remember(layer: Layer, thresholds: object) -> Kept | None:
    """Compute the weight that evaluation uses and keep it; None where nothing may be kept, as inside a transform."""
    forget(layer)
    theta, noise = layer.theta, layer.noise
    if torch._C._are_functorch_transforms_active() or type(theta) is not nn.Parameter or theta.is_meta:
        return None
    moment = _moment  # this and the sources before the weight is computed: a change meanwhile makes it stale
    sources = _sources(layer)
    if sources is None:
        return None
    stream = torch.cuda.current_stream(theta.device) if theta.is_cuda else None
    with torch.inference_mode(False):
        weight, follows = _computed(layer, theta)
    version = None if weight is theta else weight._version
    layer.kept = Kept(weight, version, follows, noise, sources, thresholds, moment, stream)
    return layer.kept


def _sources(layer: Layer) -> list[Source] | None:
    """Every tensor that the weight may be computed from; None where one is of inference mode, which counts no versions."""
    found: list[Source] = []
    held: list[tuple[dict[str, Any], str]] = [(layer._parameters, "weight")]
    for part in layer.noise.modules():
        held += [(holder, key) for holder in (part._parameters, part._buffers) for key in holder]
    for holder, key in held:
        tensor = holder[key]
        if tensor is None:
            continue
        if tensor.is_inference():
            return None
        found.append(Source(holder, key, tensor, tensor._version, tensor.data_ptr(), tensor.requires_grad))
    return found


def _computed(layer: Layer, theta: Tensor) -> tuple[Tensor, bool]:
    """The weight, and whether its gradient reaches the parameter, through however many backward passes."""
    noise = layer.noise
    with torch.no_grad():
        mask = noise.mask(theta)
        if mask is not None and bool(mask.all()):
            mask = None
        weight = noise.evaluation_weight(theta, mask)
    if weight is theta:
        return theta, True
    if mask is None or not noise.only_removes:
        return weight, False
    with torch.enable_grad():
        return _Thresholded.apply(theta, mask, weight), True


class _Thresholded(torch.autograd.Function):
    """theta where the mask holds, else 0, as computed already.

    Nothing goes through ``save_for_backward``, whose tensors the first of many backward passes would free.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        ctx.mask = mask
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return torch.where(ctx.mask, grad_outputs[0], 0.0), None, None
