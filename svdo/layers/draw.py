"""Noise as numbers: drawn in memory order, added in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Under the square root: the variance path may return tiny negatives, and d sqrt / dx is infinite at 0.
VARIANCE_FLOOR = 1e-8


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


def add_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """mean + sqrt(variance) o zeta, zeta ~ N(0, 1); both arguments, fresh results of a product, are overwritten."""
    noisy: Tensor = _AddNoise.apply(mean, variance)
    return noisy
