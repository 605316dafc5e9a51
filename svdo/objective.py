"""The bound, and the only place where the scale of its two terms is written.

Maximising the paper's SGVLB, sum_n E_q[log p(y_n | x_n, w)] - KL(q || p), over N training points is minimising

    loss = mean cross-entropy of the batch + kl_weight KL / N
"""

from __future__ import annotations

from torch import Tensor


def objective(likelihood: Tensor, kl: Tensor, n_train: int, kl_weight: float) -> Tensor:
    """The loss to minimise, a scalar in nats per training example.

    Args:
        likelihood: the mean negative log-likelihood of the batch, a scalar, from one noisy pass.
        kl: KL(q || p) of the whole network, a scalar in nats.
        n_train: N, the number of training examples (augmentation does not change it).
        kl_weight: the warm-up's factor.
    """
    return likelihood + kl * (kl_weight / n_train)


def describe(n_train: int | None) -> str:
    """The objective in words, with its scale where it has a KL, ``n_train`` being its N."""
    return "mean cross-entropy" if n_train is None else f"mean cross-entropy + kl_weight * KL / N,  N = {n_train}"
