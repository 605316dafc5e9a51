"""The noisy ``nn.Conv2d``."""

from __future__ import annotations

from torch import Tensor, nn

from .base import NoisyLayer


class NoisyConv2d(NoisyLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weights or inputs are noisy; (batch, in, height, width) -> (batch, out, height', width')."""

    spatial = 2

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x * weight + bias with the layer's stride, padding, dilation and groups, in mean and variance path alike."""
        if self.in_channels == 1 and x.dim() == 4 and self.theta.stride(1) == 1:
            # With one channel both memory formats look alike, and elementwise operations then return the other one.
            x = x.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
        output: Tensor = self._conv_forward(x, weight, bias)
        return output
