"""Sparse variational dropout (Molchanov, Ashukha, Vetrov 2017): one unbounded alpha per weight, most of which grow large.

    w_ij = theta_ij + sigma_ij eps_ij,   log alpha_ij = log sigma_ij^2 - log theta_ij^2

    loss = -log likelihood + KL (eq. 14),   sampled through the local reparameterization (eq. 17)

A weight whose log alpha reaches 3 (p > 0.95) is noise and is removed in evaluation. Published: LeNet-300-100 1.92 % error
at 68x compression, LeNet-5 0.75 % at 280x, both without pre-training.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UserError, require
from ..layers import Noise, NoisyLayer
from ..math.divergence import additive_kl, log_alpha, sigmoid_kl
from .base import Method, method

MAX_LOG = 80.0  # exp of it is still a float32
MAX_START = 8.0  # where the 2017 authors' code clips log alpha
CONV_EPS = 1e-8  # beside theta^2 in the log alpha of their convolutions, which they compute where it is clipped
PARAMETERIZATIONS = ("additive", "multiplicative")


class AdditiveNoise(Noise):
    """w = theta + sigma eps, with log sigma^2 learned per weight: the gradient of theta is free of alpha's noise (eq. 11).

    With ``train_clip``, training too takes the mean of removed weights as 0; a removed convolution weight is also silent,
    a removed dense one keeps its noise and so feels the likelihood (as the 2017 authors' released code does). So a weight of
    |theta| <= exp((log sigma^2 - threshold) / 2) is removed where it starts, and a convolution's stays so: 0.004 at the
    threshold of 3 and a log sigma^2 of -8, 0.0015 at -10.
    """

    def __init__(self, layer: NoisyLayer, settings: "SparseVD") -> None:
        super().__init__()
        self.log_sigma2 = nn.Parameter(torch.full_like(layer.theta, settings.log_sigma2))
        self.threshold, self.train_clip, self.clip = settings.threshold, settings.train_clip, settings.clip
        self.convolution = layer.spatial > 0

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """theta and sigma^2."""
        sigma2 = self.log_sigma2.exp()
        spread = self._clipped(sigma2, weight) if self.clip else sigma2
        if not self.train_clip:
            return weight, spread
        threshold = MAX_LOG if self.threshold is None else min(self.threshold, MAX_LOG)
        with torch.no_grad():  # log alpha < threshold, without a logarithm
            kept = torch.addcmul(sigma2, weight, weight, value=-math.exp(threshold)).lt_(0.0)
        return weight * kept, spread * kept if self.convolution else spread

    def _clipped(self, sigma2: Tensor, weight: Tensor) -> Tensor:
        """alpha theta^2 with log alpha within +-``clip``, where that acts a function of theta alone."""
        theta2 = weight.square()
        if self.convolution:
            sigma2 = sigma2 * (theta2 / (theta2 + CONV_EPS))
        return sigma2.clamp(min=theta2 * math.exp(-self.clip), max=theta2 * math.exp(self.clip))

    def kl(self, weight: Tensor) -> Tensor:
        """One sigmoid KL term per weight."""
        return additive_kl(weight, self.log_sigma2, self.clip)

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log sigma^2 - log theta^2, of ``weight``'s shape."""
        return log_alpha(weight, self.log_sigma2)


class MultiplicativeNoise(Noise):
    """w = theta (1 + sqrt(alpha) eps), with log alpha learned per weight: the original parameterization, for comparison.

    It starts from the log alpha that ``log_sigma2`` gives the initial weights, at most 8: a weight that starts next to 0 would
    turn the first step into noise.
    """

    def __init__(self, layer: NoisyLayer, settings: "SparseVD") -> None:
        super().__init__()
        start = torch.full_like(layer.theta, settings.log_sigma2)
        self.raw_log_alpha = nn.Parameter(log_alpha(layer.theta.detach(), start).clamp_(max=MAX_START))
        self.threshold = settings.threshold

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """theta and alpha theta^2."""
        return weight, self.raw_log_alpha.exp() * weight.square()

    def kl(self, weight: Tensor) -> Tensor:
        """One sigmoid KL term per weight."""
        return sigmoid_kl(self.raw_log_alpha).sum()

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log alpha, of ``weight``'s shape."""
        return self.raw_log_alpha


@method
@dataclass
class SparseVD(Method):
    """``log_sigma2``: where log sigma^2 starts; ``threshold``: the log alpha from which a weight is removed.

    ``clip``: training takes log alpha as within +-``clip``, in noise and KL (8 in the authors' code); 0: as it is.
    """

    label: ClassVar[str] = "Sparse VD"
    variational: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = True
    name: str = "sparsevd"
    log_sigma2: float = -10.0
    threshold: float = 3.0
    train_clip: bool = True
    parameterization: str = "additive"
    clip: float = 0.0

    def noise(self, layer: NoisyLayer, name: str) -> Noise:
        """Noise on every weight of every layer."""
        return AdditiveNoise(layer, self) if self.parameterization == "additive" else MultiplicativeNoise(layer, self)

    def check(self) -> None:
        """Raise ``UserError`` on a number or parameterization out of range, or ``train_clip`` with multiplicative noise."""
        for key in ("log_sigma2", "threshold"):
            value = getattr(self, key)
            require(
                abs(value) <= MAX_LOG, f"method.{key}={value} is out of range; it must lie between -{MAX_LOG} and {MAX_LOG}"
            )
        if self.parameterization not in PARAMETERIZATIONS:
            choices = ", ".join(PARAMETERIZATIONS)
            raise UserError(f"method.parameterization={self.parameterization} is not a choice; take one of: {choices}")
        require(0.0 <= self.clip <= MAX_LOG, f"method.clip={self.clip} is out of range; it must lie between 0 and {MAX_LOG}")
        if self.clip and self.parameterization == "multiplicative":
            raise UserError("method.clip needs the additive parameterization; leave it out")
        if self.train_clip and self.parameterization == "multiplicative":
            raise UserError("method.train_clip needs the additive parameterization; add method.train_clip=false")
