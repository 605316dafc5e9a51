"""KL(q || p) of q = N(theta, alpha theta^2) from the log-uniform prior p(|w|) ~ 1/|w|: a function of log alpha alone.

The prior is improper, so an additive constant is undefined; throughout, KL -> 0 as alpha -> infinity. Every function is
elementwise and keeps its argument's shape; the KL is in nats per weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus

# Molchanov, Ashukha, Vetrov (2017), eq. 14: least squares fit over log alpha in [-10, 10].
K1, K2, K3 = 0.63576, 1.87320, 1.48695

# Kingma, Salimans, Welling (2015), appendix C: a cubic in alpha for alpha <= 1 ...
C1, C2, C3 = 1.16145124, -1.50204118, 0.58629921
# ... whose free constant is -(gamma + log 2) / 2, the exact limit of KL + (log alpha) / 2 as alpha -> 0.
CUBIC_CONSTANT = -0.5 * (0.5772156649015329 + math.log(2.0))

# Inside log theta^2: keeps log alpha finite at theta = 0 and is far below every weight that matters.
EPS = 1e-16
LN2 = math.log(2.0)


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """log alpha = log sigma^2 - log theta^2, finite at theta = 0; both arguments of one shape."""
    return log_sigma2 - torch.log(theta.square() + EPS)


def sigmoid_kl(log_alpha: Tensor) -> Tensor:
    """The 2017 approximation, valid for every alpha and within 0.0094 of the exact KL for log alpha in [-10, 10].

    KL = k1 - k1 sigmoid(k2 + k3 log alpha) + 1/2 log(1 + 1/alpha)   (eq. 14)
    """
    return K1 * torch.sigmoid(-(K2 + K3 * log_alpha)) + 0.5 * softplus(-log_alpha)


def exact_kl(log_alpha: Any) -> Any:
    """The KL itself, by which the approximations are judged; a numpy array of the argument's shape, in float64. Needs scipy.

    With u = 1 / (2 alpha) and D the Dawson function, KL = 2 int_0^sqrt(u) D(s) ds, so d KL / d log alpha = -sqrt(u) D(sqrt(u)).
    """
    import numpy as np
    from scipy.integrate import quad
    from scipy.special import dawsn

    roots = np.exp(-0.5 * np.asarray(log_alpha, dtype=np.float64)) / math.sqrt(2.0)
    # D falls as 1 / (2 s): in log s the integrand is smooth however far it goes.
    tail = [quad(lambda t: np.exp(t) * dawsn(np.exp(t)), -40.0, math.log(root), limit=400)[0] for root in roots.flat]
    return 2.0 * np.array(tail).reshape(roots.shape)


def cubic_kl(log_alpha: Tensor) -> Tensor:
    """The 2015 approximation, for alpha <= 1 only (above, it turns negative), within 0.040 of the exact KL there.

    KL = -(const + 1/2 log alpha + c1 alpha + c2 alpha^2 + c3 alpha^3)   (appendix C)
    """
    alpha = torch.exp(log_alpha)
    return -(CUBIC_CONSTANT + 0.5 * log_alpha + alpha * (C1 + alpha * (C2 + alpha * C3)))


class _AdditiveKL(torch.autograd.Function):
    """Sum of ``sigmoid_kl(log_alpha(theta, log_sigma2))`` with its gradient in closed form.

    softplus and log1p are by far the dearest elementwise operations of a CPU step, and neither is needed: with s the logistic
    function, 1/2 log(1 + 1/alpha) = -1/2 log s(log alpha), whose derivative by log alpha is -1/2 s(-log alpha). Of the
    logarithms the one of base 2 is the cheapest.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, theta: Tensor, log_sigma2: Tensor, clip: float) -> Tensor:
        theta2 = theta.square().add_(EPS)
        log_alpha = torch.log2(theta2).mul_(-LN2).add_(log_sigma2)
        inside = (log_alpha.abs() < clip) if clip else None
        if clip:
            log_alpha.clamp_(-clip, clip)
        falling = torch.sub(-K2, log_alpha, alpha=K3).sigmoid_()  # s(-(k2 + k3 log alpha))
        by_log_alpha = log_alpha.neg().sigmoid_()
        value = K1 * falling.sum() - 0.5 * LN2 * log_alpha.sigmoid_().log2_().sum()
        by_log_alpha.mul_(-0.5).add_(falling.addcmul_(falling, falling, value=-1.0), alpha=-K1 * K3)
        if inside is not None:
            by_log_alpha.mul_(inside)
        ctx.save_for_backward(by_log_alpha, theta, theta2)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        by_log_alpha, theta, theta2 = ctx.saved_tensors  # type: ignore[attr-defined]
        by_log_sigma2 = by_log_alpha * grad_outputs[0]
        # d log alpha / d theta = -2 theta / (theta^2 + eps): exactly 0, not 0/0, at theta = 0.
        return torch.mul(theta, -2.0).div_(theta2).mul_(by_log_sigma2), by_log_sigma2, None


def additive_kl(theta: Tensor, log_sigma2: Tensor, clip: float = 0.0) -> Tensor:
    """Sum over all weights of the 2017 KL of N(theta, sigma^2), a scalar; fast, and safe at theta = 0.

    Where ``clip`` is positive, log alpha counts as within +-``clip``, and has no gradient beyond.
    """
    total: Tensor = _AdditiveKL.apply(theta, log_sigma2, clip)
    return total


class _BoundedKL(torch.autograd.Function):
    """Sum of ``cubic_kl`` over log alpha bounded by 0, its gradient in closed form: half the passes of autograd's graph."""

    @staticmethod
    def forward(ctx: FunctionCtx, log_alpha: Tensor) -> Tensor:
        bounded = log_alpha.clamp(max=0.0)
        logarithms = bounded.sum()
        alpha = bounded.exp_()
        alpha2 = alpha.square()
        slope = torch.mul(alpha2, -3.0 * C3).add_(alpha, alpha=-2.0 * C2).sub_(C1).mul_(alpha).sub_(0.5)
        ctx.save_for_backward(slope)
        cubes = C1 * alpha.sum() + C2 * alpha2.sum() + C3 * alpha2.mul_(alpha).sum()
        return -(CUBIC_CONSTANT * alpha.numel() + 0.5 * logarithms + cubes)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        return slope * grad_outputs[0]


def bounded_kl(log_alpha: Tensor) -> Tensor:
    """Sum of the 2015 KL, an alpha above 1 counting as 1, with the slope at 1."""
    total: Tensor = _BoundedKL.apply(log_alpha)
    return total
