"""Noisy Linear and Conv2d, written once: a mean path, a variance path, a bias in the mean only, masked evaluation.

A noisy layer is an ordinary ``nn.Linear`` or ``nn.Conv2d`` (same parameters, same names) that owns a ``Noise``. The noise
says what is random; the layer says how randomness travels through a product or a convolution:

* pre-linear noise multiplies the input (outputs of one example are correlated): B = (A o xi) theta
* post-linear noise is the local reparameterization (outputs are independent), with A o A the elementwise square:
  B = A mu + sqrt((A o A) sigma^2) o zeta, zeta ~ N(0, 1)

For convolutions the second form treats output positions as independent, the mean-field approximation of the 2017 paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import memory, settings
from .draw import add_noise
from .noise import SAMPLING, THRESHOLDS, Noise
from .warn import warn_of_export

if TYPE_CHECKING:
    from typing_extensions import Self


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
                return add_noise(output.float(), spread).to(output.dtype)
        dtype = self.variance_dtype or x.dtype
        spread = self.product(x.square().to(dtype), variance.to(dtype), None).to(output.dtype)
        return add_noise(output, spread)

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
