"""What a method is, and the registry that the ``@method`` line of each method file fills."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..config import Choice, check_rates
from ..errors import require
from ..layers import Noise, NoisyLayer, drawn_like
from ..registry import Registry

METHODS: Registry[type[Method]] = Registry("method")


@dataclass
class Method(Choice):
    """A regulariser: its fields are its settings, with the paper's defaults, and its ``noise`` is its mathematics."""

    label: ClassVar[str]  # the method's name in tables
    sparsifies: ClassVar[bool] = False  # whether it removes weights, at its end more than at its start
    variational: ClassVar[bool] = False  # whether it learns its noise by a variational bound
    learns_rates: ClassVar[bool] = False  # whether that noise is a dropout rate, alpha = p / (1 - p), worth showing as one

    def noise(self, layer: NoisyLayer, name: str) -> Noise | None:
        """The noise of one Linear or Conv2d layer, called ``name`` in its network; None leaves the layer plain."""
        raise NotImplementedError

    def noises(self, layers: Mapping[str, NoisyLayer]) -> dict[str, Noise | None]:
        """``noise`` of each layer by name; a method whose layers share something overrides this instead."""
        return {name: self.noise(layer, name) for name, layer in layers.items()}

    def chosen(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {key: value for key, value in vars(self).items() if key != "name" and value != getattr(type(self)(), key)}

    def check_patterns(self, layers: Collection[str]) -> None:
        """Raise ``UserError`` where a setting by layer has a pattern that matches none of ``layers``."""
        for setting in fields(self):
            if isinstance(patterns := getattr(self, setting.name), Mapping):
                for pattern in patterns:
                    require(
                        any(fnmatchcase(name, pattern) for name in layers),
                        f"method.{setting.name}: no layer is called {pattern}; take names or patterns of: {', '.join(layers)}",
                    )


@dataclass
class DropoutMethod(Method):
    """A method with one dropout rate per layer, p (alpha = p / (1 - p)), chosen by the layer's name.

    ``rates`` maps shell patterns to rates; of the patterns that match a layer the last one counts, and a layer without a
    match, or with rate 0, stays plain. Left out, the command line takes the model's customary rates and ``convert`` 0.5.
    """

    rates: dict[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """The dropout rate p of the layer called ``name``."""
        return of_layer(self.rates or {"*": 0.5}, name, 0.0)

    def check(self) -> None:
        """Raise ``UserError`` on a rate outside [0, 1)."""
        check_rates("method.rates", self.rates)


def of_layer(values: Mapping[str, float], name: str, default: float) -> float:
    """The value of the last pattern that matches the layer called ``name``, or ``default``."""
    return next((value for pattern, value in reversed(list(values.items())) if fnmatchcase(name, pattern)), default)


def check_phase(start: float, stop: float) -> None:
    """Raise ``UserError`` unless 0 <= start <= stop <= 1: the shares of training between which a method acts."""
    require(0.0 <= start <= stop <= 1.0, f"method.start={start}, method.stop={stop}: they must lie in [0, 1], in this order")


M = TypeVar("M", bound=type[Method])


def method(cls: M) -> M:
    """Register a ``Method`` dataclass under its ``name``: the command line, conversion, tables and tests follow from it."""
    METHODS.add(cls.name, cls)
    return cls


def find(name: str) -> type[Method]:
    """The method class called ``name``; raises ``UserError`` listing the choices where there is none."""
    return METHODS.find(name)


class Removal(Noise):
    """Noise of a method that decides itself which weights are removed: 1 in ``removed``, of the weight's shape, else 0.

    It is a float so that averages of networks stay sparse, ``AveragedModel(use_buffers=True)`` included: an average of zeros is
    exactly 0, and any other is a weight that was removed in one of the networks.
    """

    random: ClassVar[bool] = False
    removed: Tensor

    def __init__(self, layer: NoisyLayer) -> None:
        super().__init__()
        self.register_buffer("removed", torch.zeros_like(layer.theta, requires_grad=False))

    def mask(self, weight: Tensor) -> Tensor:
        """What has not been removed, nor in any network of an average."""
        return self.removed == 0.0

    def remaining(self, weight: Tensor) -> Tensor:
        """``weight`` times ``mask``, which as numbers of the weight's type takes a fraction of what booleans take."""
        kept = self.removed.clone().eq_(0.0)
        return weight * kept

    def keep(self, kept: Tensor) -> None:
        """Remove all but the weights where the boolean ``kept`` holds."""
        self.removed.copy_(~kept)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        earlier = state_dict.pop(f"{prefix}kept", None)  # how states said it before
        if earlier is not None:
            state_dict[f"{prefix}removed"] = ~earlier
        super()._load_from_state_dict(state_dict, prefix, *rest)


def rate_to_log_alpha(rate: float) -> float:
    """log alpha of the Gaussian noise N(1, alpha) that matches dropout rate p: alpha = p / (1 - p)."""
    return math.log(rate / (1.0 - rate))


def multiply_by_noise(x: Tensor, alpha: Tensor) -> Tensor:
    """x o xi, xi ~ N(1, alpha) drawn for every element of ``x``; ``alpha`` broadcasts to ``x``."""
    return x * (1.0 + alpha.sqrt() * drawn_like(x, Tensor.normal_))
