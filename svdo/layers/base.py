"""Noisy Linear and Conv2d, written once: a mean path, a variance path, a bias in the mean only, masked evaluation.

A noisy layer is an ordinary ``nn.Linear`` or ``nn.Conv2d`` (same parameters, same names) that owns a ``Noise``. The noise
says what is random; the layer says how randomness travels through a product or a convolution:

* pre-linear noise multiplies the input (outputs of one example are correlated): B = (A o xi) theta
* post-linear noise is the local reparameterization (outputs are independent), with A o A the elementwise square:
  B = A mu + sqrt((A o A) sigma^2) o zeta, zeta ~ N(0, 1)

For convolutions the second form treats output positions as independent, the mean-field approximation of the 2017 paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ..errors import UserError
from . import memory, settings
from .warn import warn_of_export

if TYPE_CHECKING:
    from typing_extensions import Self

# Under the square root: the variance path may return tiny negatives, and d sqrt / dx is infinite at 0.
VARIANCE_FLOOR = 1e-8

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


def name_of(dtype: torch.dtype) -> str:
    """The type as one writes it after ``torch.``."""
    return str(dtype).removeprefix("torch.")


def why_not(dtype: torch.dtype) -> str | None:
    """Why weights of the type cannot be noisy, or None where they can."""
    if dtype in (torch.float32, torch.float64):
        return None
    if dtype.is_complex:
        return f"{name_of(dtype)}, and noise and KL are those of real weights"
    if dtype.is_floating_point:
        return f"{name_of(dtype)}, too narrow for the noise and its KL"
    return f"{name_of(dtype)}, which no gradient can train"


def drawn_like(x: Tensor, fill: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of ``x``'s shape, memory format and, by default, dtype, filled by ``fill``, in place and in memory order.

    Filling a channels_last tensor in logical order, as ``randn_like`` and ``dropout`` do, is many times slower on CPUs.
    """
    drawn = torch.empty_like(x, dtype=dtype)
    channels_last = x.dim() == 4 and not drawn.is_contiguous()
    fill(drawn.permute(0, 2, 3, 1) if channels_last else drawn)
    return drawn


class _AddNoise(torch.autograd.Function):
    """mean + sqrt(variance) o zeta, in place of both arguments, which must be fresh results of a product.

    It keeps one tensor for backward instead of the graph of the square root. Fresh memory is what these operations wait for,
    and neither product needs its result for its own backward pass.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, mean: Tensor, variance: Tensor) -> Tensor:
        deviation = variance.clamp_min_(VARIANCE_FLOOR).sqrt_()
        half_zeta = drawn_like(mean, lambda tensor: tensor.normal_(std=0.5))
        mean.addcmul_(deviation, half_zeta, value=2.0)
        ctx.mark_dirty(mean)
        ctx.save_for_backward(half_zeta.div_(deviation))
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (half_zeta_over_deviation,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_outputs[0], grad_outputs[0] * half_zeta_over_deviation


class NoisyLayer(nn.Module):
    """Shared behaviour of ``NoisyLinear`` and ``NoisyConv2d``: noisy in training and while sampling, masked otherwise.

    ``weight`` says what the layer computes with: the parameter in training, the thresholded weight in evaluation, so that a
    network that reads it without calling the layer (``F.linear(x, layer.weight)``) evaluates as one that does. The parameter
    itself is ``theta``, and in ``parameters()`` and ``state_dict()`` always.
    """

    spatial: ClassVar[int] = 0  # how many dimensions of positions the input has behind its units, and the weight has, too
    groups: int = 1  # of input units, each with output units of its own: (out, in / groups, ...) is the weight's shape
    bias: Any
    noise: Noise
    kept: memory.Kept | None = None  # what evaluation remembers
    called: bool = False  # whether a forward pass has come through here
    read: bool = False  # whether something has read ``weight``, as a network does that goes past the layer
    draws: bool = False  # in a replica of torch.nn.DataParallel, whose thread is not that of ``sampling``
    variance_dtype: torch.dtype | None = None  # of the variance product; None: as the mean's

    @property
    def theta(self) -> Tensor:
        """The weight parameter; raises ``UserError`` where it is gone, or of a type too narrow for noise and KL."""
        theta = self._parameters.get("weight")
        if theta is None:
            raise UserError(
                f"a {type(self).__name__} has lost its weight parameter, as by torch.nn.utils.weight_norm or prune after"
                " convert; take them away again, or leave that layer out of convert with exclude"
            )
        if (reason := why_not(theta.dtype)) is not None:
            raise UserError(
                f"a {type(self).__name__} is in {reason}; keep the converted"
                " network in float32 and train under torch.autocast, or convert svdo.plain(model) to that type"
            )
        return theta

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with now; in evaluation not the parameter, so write to ``theta`` alone."""
        if not self.read:
            self.read = True
        return self.theta if self.noisy else self.evaluation_weight()

    @weight.setter
    def weight(self, value: Tensor) -> None:
        if not getattr(self, "_is_replica", False):
            raise self._must_stay()
        self._parameters["weight"] = value  # type: ignore[assignment]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As for every module; in evaluation ``prune`` and its like come with a weight that is none."""
        if isinstance(param, Tensor) and not isinstance(param, nn.Parameter):
            raise self._must_stay()
        super().register_parameter(name, param)

    def _must_stay(self) -> UserError:
        return UserError(
            f"the weight of a {type(self).__name__} must stay a parameter; weight_norm, prune and their like belong before"
            " convert, with that layer left out by exclude, or after svdo.plain"
        )

    @property
    def noisy(self) -> bool:
        """Whether a pass now draws noise: in training, or inside ``sampling``."""
        return self.training or self in SAMPLING.get() or self.draws

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map of ``x`` with the given weight and bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Noisy output in training mode or inside ``sampling``; else that of the thresholded mean weights."""
        if not self.called:
            self.called = True
        if not self.noisy:
            warn_of_export()
            return self.product(x, self.evaluation_weight(), self.bias)
        theta = self.theta
        with torch.no_grad():
            self.noise.project()
        x = self.noise.perturb(x)
        mean, variance = self.noise.posterior(theta)
        output = self.product(x, mean, self.bias)
        if variance is None:
            return output
        if output.dtype == torch.float16:  # too narrow for squares, and VARIANCE_FLOOR is 0 in it
            with torch.autocast(x.device.type, enabled=False):
                spread = self.product(x.float().square(), variance.float(), None)
                return _AddNoise.apply(output.float(), spread).to(output.dtype)  # type: ignore[no-any-return]
        dtype = self.variance_dtype or x.dtype
        spread = self.product(x.square().to(dtype), variance.to(dtype), None).to(output.dtype)
        noisy: Tensor = _AddNoise.apply(output, spread)
        return noisy

    def evaluation_weight(self) -> Tensor:
        """``pruned_weight``, remembered from one pass to the next while nothing that it is computed from changes.

        What is written through ``.data`` in evaluation mode cannot be seen; ``eval()`` afterwards makes it count.
        """
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return self._computed_weight()
        kept, thresholds = self.kept, THRESHOLDS.get()
        if kept is None or not kept.holds(self._modules["noise"], thresholds):
            kept = memory.remember(self, thresholds)
        elif kept.written:
            memory.forget(self)
        if kept is None or (torch.is_grad_enabled() and not kept.follows):
            return self._computed_weight()
        return kept.weight

    def pruned_weight(self) -> Tensor:
        """The weight used in evaluation, of ``weight``'s shape, computed anew: the mean where the mask keeps it, else 0."""
        memory.forget(self)
        return self._computed_weight()

    def _computed_weight(self) -> Tensor:
        return self.noise.evaluation_weight(self.theta, self.noise.mask(self.theta))

    def kl(self) -> Tensor:
        """The layer's KL(q || p), a scalar in nats."""
        return self.noise.kl(self.theta)

    def train(self, mode: bool = True) -> Self:
        """As for every module; what evaluation remembers is forgotten."""
        memory.forget(self)
        return super().train(mode)

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.draws = self.noisy
        replica.kept = None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "kept"}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        settings.check(self.noise.settings_text, state_dict, f"{prefix}noise.")  # before anything is overwritten
        super()._load_from_state_dict(state_dict, prefix, *rest)
