"""What a method does to one layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import memory, settings

# Of this thread and task alone: the layers that draw noise in evaluation, and thresholds that stand in for the noises' own.
SAMPLING: ContextVar[frozenset[nn.Module]] = ContextVar("sampling", default=frozenset())
THRESHOLDS: ContextVar[Mapping[nn.Module, float]] = ContextVar("thresholds", default=MappingProxyType({}))


class Noise(nn.Module):
    """What a method does to one layer: its noise, its prior, its mask; a method file overrides what applies to it.

    ``weight`` is always the layer's own parameter, (out, in) for Linear and (out, in / groups, height, width) for Conv2d.
    Parameters of a ``Noise`` never take part in weight decay; ``learning_rates`` scales the learning rate of those it names.
    """

    random: ClassVar[bool] = True  # whether two training passes differ
    removed_above: ClassVar[bool] = True  # which scores remove a weight: from the threshold upwards, or else downwards
    learning_rates: ClassVar[Mapping[str, float]] = {}
    own_threshold: float | None = None
    settings_text: str = ""  # method and settings as JSON, from convert; they travel in the state_dict

    @property
    def threshold(self) -> float | None:
        """The ``score`` at which evaluation removes a weight, where there is one; inside ``at_threshold``, that one."""
        return THRESHOLDS.get().get(self, self.own_threshold)

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self.own_threshold = value

    def perturb(self, x: Tensor) -> Tensor:
        """Pre-linear noise: the layer's input times the noise, of the same shape."""
        return x

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Post-linear noise: mean and variance of q(w), both of ``weight``'s shape; no variance means no such noise."""
        return weight, None

    def kl(self, weight: Tensor) -> Tensor:
        """The layer's KL(q || p), a scalar in nats, summed over its noise variables."""
        return weight.new_zeros(())

    def log_alpha(self, weight: Tensor) -> Tensor | None:
        """log alpha broadcastable to ``weight``'s shape, or None where noise has no variance to speak of."""
        return None

    def score(self, weight: Tensor) -> Tensor | None:
        """What ``threshold`` is held against, broadcastable to ``weight``'s shape, so of a weight or of a group: log alpha.

        Another score (a signal-to-noise ratio, a probability to be kept) overrides this; where its small values remove a
        weight, ``removed_above`` is False.
        """
        return self.log_alpha(weight)

    def mask(self, weight: Tensor) -> Tensor | None:
        """Boolean, broadcastable to ``weight``'s shape: the weights that evaluation keeps; None keeps them all.

        They are those whose score is below ``threshold`` or, where ``removed_above`` is False, above it. A function of
        ``weight`` and of this module's tensors and attributes alone: what follows from it is remembered until one is changed.
        """
        threshold = self.threshold
        score = None if threshold is None else self.score(weight)
        if score is None or threshold is None:
            return None
        return score < threshold if self.removed_above else score > threshold

    def evaluation_weight(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        """The weight that evaluation computes with, of ``weight``'s shape: itself, and 0 where ``mask`` does not hold.

        A method whose posterior mean is another (a scaled one) overrides this; like ``mask``, a function of its arguments and
        this module alone.
        """
        return weight if mask is None else torch.where(mask, weight, 0.0)

    @property
    def only_removes(self) -> bool:
        """Whether evaluation takes the weights as they are but for zeros: ``evaluation_weight`` is not overridden."""
        return type(self).evaluation_weight is Noise.evaluation_weight

    def project(self) -> None:
        """Bring parameters back into their domain; called before each noisy pass, without gradient."""

    def advance(self, weight: Tensor, step: int, steps: int) -> None:
        """A method with phases acts here, on its mask or on ``weight`` in place, without gradient.

        Called before each training step, with ``step`` of all ``steps`` done, and once more when all are.
        """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        memory.changed()

    def get_extra_state(self) -> Tensor:
        """Method and settings, as bytes in a tensor."""
        return settings.encode(self.settings_text)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: the layer has held them against its own before it took anything of the state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        missing: list[str] = rest[2]
        if prefix + settings.KEY in missing:  # states of before there were settings in them
            missing.remove(prefix + settings.KEY)
