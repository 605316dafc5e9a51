"""Soft weight-sharing (Ullrich, Meeds, Welling 2017): weights cluster under a learned mixture of Gaussians, then share values.

    p(w) = sum_j pi_j N(w | mu_j, 1 / lambda_j),   mu_0 = 0 with pi_0 fixed;   lambda_j ~ Gamma(a_j, b_j)
    loss = -log likelihood + tau (-sum_w log p(w) - sum_j log Gamma(lambda_j | a_j, b_j))

One mixture serves the whole network. After training, components that have become one are merged and every weight takes the mean
of its most responsible component, 0 for most. There is no noise: the penalty stands where a KL stands elsewhere, so the KL
warm-up says when clustering begins (``train.kl_start``). Published: LeNet-300-100 1.94 % error with 4.3 % of the weights,
LeNet-5 0.97 % with 0.5 %.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ..errors import require
from ..layers import Noise, NoisyLayer
from .base import Method, method

# Gamma(a, b) of the precision, for the component at zero and for the others.
ZERO_PRIOR, OTHERS_PRIOR = (5000.0, 2.0), (250.0, 0.1)
MAX_COMPONENTS = 256  # a weight's index is then a byte; merging takes time that grows with their cube
SAME = 1e-10  # components this close in KL divergence, in nats, are one


class Mixture(nn.Module):
    """Component 0 at zero with its share fixed; ``components`` others with means, precisions and shares learned."""

    def __init__(self, settings: "SWS") -> None:
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-settings.span, settings.span, settings.components))
        self.log_precisions = nn.Parameter(torch.full((settings.components + 1,), -2.0 * math.log(settings.width)))
        self.log_shares = nn.Parameter(torch.zeros(settings.components))
        self.zero_share = settings.zero_share
        self.log_zero_share: Tensor  # a buffer: making it anew in each step would keep a GPU waiting
        self.register_buffer("log_zero_share", torch.tensor([math.log(settings.zero_share)]), persistent=False)
        a, b = torch.tensor([ZERO_PRIOR] + [OTHERS_PRIOR] * settings.components).T
        self.a: Tensor
        self.b: Tensor
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """log pi, mu and log lambda of all components, each of shape (components + 1,)."""
        log_shares = torch.log_softmax(self.log_shares, 0) + math.log1p(-self.zero_share)
        return (
            torch.cat([self.log_zero_share, log_shares]),
            torch.cat([self.means.new_zeros(1), self.means]),
            self.log_precisions,
        )

    def coefficients(self) -> Tensor:
        """Of w^2, w and 1 in log pi_j + log N(w | mu_j, 1 / lambda_j), a (components + 1, 3) matrix."""
        log_shares, means, log_precisions = self.components()
        precisions = log_precisions.exp()
        constants = log_shares + 0.5 * (log_precisions - math.log(2.0 * math.pi) - precisions * means.square())
        return torch.stack([-0.5 * precisions, precisions * means, constants], 1)

    def log_likelihood(self, weight: Tensor) -> Tensor:
        """sum_w log p(w), a scalar."""
        with torch.autocast(weight.device.type, enabled=False):  # which would multiply in half precision
            result: Tensor = _LogLikelihood.apply(weight.flatten(), self.coefficients())
        return result

    def shared(self, weight: Tensor) -> Tensor:
        """For each weight the mean of its most responsible component, merged ones counting together; of ``weight``'s shape."""
        means, group = self.merged_means().unique(return_inverse=True)
        terms = self.coefficients() @ _powers(weight.flatten())
        responsible = torch.stack([terms[group == number].logsumexp(0) for number in range(len(means))]).argmax(0)
        result: Tensor = means[responsible].view_as(weight)
        return result

    def hyper_penalty(self) -> Tensor:
        """-log Gamma(lambda | a, b) summed over components, a scalar that is 0 where every precision is the prior's mode."""
        at_mode = (1.0 - self.a) * ((self.a - 1.0) / self.b).log() + self.a - 1.0
        return ((1.0 - self.a) * self.log_precisions + self.b * self.log_precisions.exp() - at_mode).sum()

    def merged_means(self) -> Tensor:
        """For each component, the mean of what it was merged into, (components + 1,); the one nearest to zero is exactly 0."""
        log_shares, means, log_precisions = (part.double().tolist() for part in self.components())
        groups = [
            ([j], math.exp(log_share), mean, math.exp(-log_precision))
            for j, (log_share, mean, log_precision) in enumerate(zip(log_shares, means, log_precisions, strict=True))
        ]
        while len(groups) > 1:
            pairs = [(p, q) for p in range(len(groups)) for q in range(len(groups)) if p != q]
            p, q = min(pairs, key=lambda pair: _divergence(groups[pair[0]], groups[pair[1]]))
            if _divergence(groups[p], groups[q]) >= SAME:
                break
            (first, share, mean, variance), (second, share2, mean2, variance2) = groups[p], groups[q]
            total = share + share2
            union = (
                first + second,
                total,
                (share * mean + share2 * mean2) / total,
                (share * variance + share2 * variance2) / total,
            )
            groups = [group for i, group in enumerate(groups) if i not in (p, q)] + [union]
        nearest = min(range(len(groups)), key=lambda i: abs(groups[i][2]))
        result = torch.zeros_like(self.log_precisions)
        for i, (members, _, mean, _) in enumerate(groups):
            result[members] = 0.0 if i == nearest else mean
        return result


def _divergence(p: tuple[list[int], float, float, float], q: tuple[list[int], float, float, float]) -> float:
    """KL(p || q) of two Gaussians, in nats."""
    _, _, mean, variance = p
    _, _, mean2, variance2 = q
    return 0.5 * (math.log(variance2 / variance) + (variance + (mean - mean2) ** 2) / variance2 - 1.0)


def _powers(w: Tensor) -> Tensor:
    return torch.stack([w.square(), w, torch.ones_like(w)])


class _LogLikelihood(torch.autograd.Function):
    """sum_w log sum_j exp(c_j0 w^2 + c_j1 w + c_j2) with its gradient, in pieces that stay in a CPU's cache.

    As one graph over all (weights, components + 1) terms it takes several times as long as the rest of a training step.
    """

    PIECE = 16384

    @staticmethod
    def forward(ctx: FunctionCtx, w: Tensor, coefficients: Tensor) -> Tensor:
        total, for_w, for_c = w.new_zeros(()), torch.empty_like(w), torch.zeros_like(coefficients)
        for start in range(0, len(w), _LogLikelihood.PIECE):
            piece = w[start : start + _LogLikelihood.PIECE]
            powers = _powers(piece)
            terms = coefficients @ powers
            largest = terms.amax(0)
            terms.sub_(largest).exp_()
            sums = terms.sum(0)
            total += (sums.log() + largest).sum()
            shares = terms.div_(sums)
            quadratic, linear = coefficients[:, :2].T @ shares
            for_w[start : start + len(piece)] = linear + 2.0 * quadratic * piece
            for_c.addmm_(shares, powers.T)
        ctx.save_for_backward(for_w, for_c)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        for_w, for_c = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_outputs[0] * for_w, grad_outputs[0] * for_c


class SharedWeights(Noise):
    """One layer's part in the mixture's penalty."""

    random: ClassVar[bool] = False
    # Relative to the weights' 5e-4: means 1e-4, log precisions and log shares 3e-3.
    learning_rates: ClassVar[Mapping[str, float]] = {"means": 0.2, "log_precisions": 6.0, "log_shares": 6.0}

    def __init__(self, mixture: Mixture, tau: float, part: float) -> None:
        super().__init__()
        self.mixture, self.tau, self.part = mixture, tau, part

    def kl(self, weight: Tensor) -> Tensor:
        """tau (-sum_w log p(w)), and this layer's equal part of the hyper-prior's penalty."""
        return self.tau * (self.part * self.mixture.hyper_penalty() - self.mixture.log_likelihood(weight))

    def mask(self, weight: Tensor) -> Tensor:
        """w != 0; none is 0 before the weights are shared."""
        return weight != 0

    def advance(self, weight: Tensor, step: int, steps: int) -> None:
        """After the last step, give each weight the mean of its most responsible component."""
        if step == steps:
            weight.copy_(self.mixture.shared(weight))


@method
@dataclass
class SWS(Method):
    """``components`` beside the one at zero, which has ``zero_share``; means start evenly on +-``span``, stds at ``width``."""

    label: ClassVar[str] = "SWS"
    sparsifies: ClassVar[bool] = True
    name: str = "sws"
    components: int = 16
    zero_share: float = 0.99
    tau: float = 0.003
    span: float = 0.6
    width: float = 0.25

    def noises(self, layers: Mapping[str, NoisyLayer]) -> dict[str, Noise | None]:
        """One mixture for all layers."""
        mixture = Mixture(self)
        return {name: SharedWeights(mixture, self.tau, 1.0 / len(layers)) for name in layers}

    def check(self) -> None:
        """Raise ``UserError`` on a number that makes no mixture."""
        require(
            1 <= self.components <= MAX_COMPONENTS,
            f"method.components={self.components} is out of range; it must lie between 1 and {MAX_COMPONENTS}",
        )
        require(0.0 < self.zero_share < 1.0, f"method.zero_share={self.zero_share} is out of range; it must lie in (0, 1)")
        for key in ("tau", "span", "width"):
            require(getattr(self, key) > 0.0, f"method.{key}={getattr(self, key)} must be positive")
