"""The scale of the bound: mean cross-entropy + kl_weight KL / N, by hand and against the sum form of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from svdo.objective import describe, objective
from svdo.tasks.classification import Classification


def bound(logits: Tensor, labels: Tensor, kl: Tensor, n_train: int, kl_weight: float) -> Tensor:
    return objective(Classification().loss(logits, labels), kl, n_train, kl_weight)


def test_objective_of_two_examples_computed_by_hand() -> None:
    # Softmax of (0, log 3) is (1/4, 3/4).
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    expected = (math.log(4.0) + math.log(4.0 / 3.0)) / 2 + 0.25 * 800.0 / 1000
    value = bound(logits, labels, torch.tensor(800.0, dtype=torch.float64), n_train=1000, kl_weight=0.25)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_n_times_the_objective_is_the_papers_scaled_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (7,), generator=generator)
    kl, n, rw = torch.tensor(123.4, dtype=torch.float64), 60_000, 0.6
    probabilities = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    negative_bound = -n / 7 * sum(math.log(probabilities[i, labels[i]]) for i in range(7)) + rw * kl.item()
    assert n * bound(logits, labels, kl, n, rw).item() == pytest.approx(negative_bound, rel=1e-6)


def test_kl_enters_the_gradient_divided_by_n_exactly_once() -> None:
    kl = torch.tensor(5.0, requires_grad=True)
    logits = torch.zeros(3, 2, requires_grad=True)
    bound(logits, torch.zeros(3, dtype=torch.long), kl, n_train=400, kl_weight=0.5).backward()
    assert kl.grad.item() == pytest.approx(0.5 / 400, rel=1e-6)
    # The mean cross-entropy at equal logits has gradient (p - y) / batch.
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.5]] * 3) / 3)


def test_without_kl_weight_only_the_cross_entropy_is_left() -> None:
    value = bound(torch.zeros(2, 10), torch.tensor([3, 4]), torch.tensor(1e6), n_train=10, kl_weight=0.0)
    assert value.item() == pytest.approx(math.log(10.0), rel=1e-6)


def test_description_names_the_scale() -> None:
    assert "KL / N" in describe(1234)
    assert "1234" in describe(1234)
