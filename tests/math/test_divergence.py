"""The KL and its approximations against the exact integral, the dossier's table, and plain autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import dawsn
from torch import Tensor

from svdo.math import divergence
from svdo.math.divergence import additive_kl, cubic_kl, log_alpha, sigmoid_kl
from svdo.report import measures

# log alpha, exact KL, 2017 approximation, 2015 cubic (None above its domain), exact dKL / dlog alpha
TABLE = [
    (-10.0, 5.635159, 5.635781, 5.635129, -0.500023),
    (-8.0, 4.635014, 4.635899, 4.634792, -0.500168),
    (-6.0, 3.633937, 3.636446, 3.632312, -0.501249),
    (-4.0, 2.625755, 2.634208, 2.614409, -0.509714),
    (-3.0, 2.107978, 2.115590, 2.081007, -0.530212),
    (-2.0, 1.544155, 1.540533, 1.504054, -0.611234),
    (-1.0, 0.914531, 0.913872, 0.881996, -0.599704),
    (0.0, 0.426686, 0.431239, 0.389472, -0.362389),
    (1.0, 0.173194, 0.177970, None, -0.162960),
    (2.0, 0.066168, 0.068417, None, -0.064696),
    (3.0, 0.024688, 0.025420, None, -0.024484),
    (5.0, 0.003365, 0.003415, None, -0.003361),
    (8.0, 0.000168, 0.000168, None, -0.000168),
]
GRID = np.linspace(-10.0, 10.0, 401)


def exact_kl(at: float) -> float:
    """2 times the integral of Dawson's function from 0 to |theta| / (sigma sqrt 2)."""
    end = math.exp(-at / 2) / math.sqrt(2)
    knots = [0.0, *(k for k in (1.0, 4.0, 16.0, 64.0) if k < end), end]
    return 2.0 * sum(quad(dawsn, a, b, epsabs=1e-12, epsrel=1e-11)[0] for a, b in pairwise(knots))


def exact_slope(at: float | np.ndarray) -> float | np.ndarray:
    """The derivative of the exact KL by log alpha."""
    root = np.exp(-np.asarray(at) / 2) / math.sqrt(2)
    return -root * dawsn(root)


def textbook_kl(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """The 2017 formula as printed, with no epsilon and no rearrangement; its sum over weights."""
    la = log_sigma2 - 2 * theta.abs().log()
    negative = 0.63576 / (1 + torch.exp(-(1.87320 + 1.48695 * la))) - 0.5 * torch.log(1 + torch.exp(-la)) - 0.63576
    return -negative.sum()


def values(f: Callable[[Tensor], Tensor], at: np.ndarray) -> np.ndarray:
    return f(torch.tensor(at, dtype=torch.float64)).numpy()


def slopes(f: Callable[[Tensor], Tensor], at: np.ndarray) -> np.ndarray:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(f(x).sum(), x)
    return grad.numpy()


def weights(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weights and log variances whose log alphas cover about -20 ... 20."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(n, generator=generator, dtype=torch.float64) * 0.1
    target = torch.linspace(-20.0, 20.0, n, dtype=torch.float64)
    return theta.to(dtype), (target + 2 * theta.abs().log()).to(dtype)


@pytest.mark.parametrize(("at", "kl", "sigmoid", "cubic", "slope"), TABLE)
def test_golden_table_of_exact_and_approximate_kl(
    at: float, kl: float, sigmoid: float, cubic: float | None, slope: float
) -> None:
    x = torch.tensor(at, dtype=torch.float64)
    assert exact_kl(at) == pytest.approx(kl, abs=1e-5)
    assert exact_slope(at) == pytest.approx(slope, abs=1e-5)
    assert sigmoid_kl(x).item() == pytest.approx(sigmoid, abs=1e-5)
    if cubic is not None:
        assert cubic_kl(x).item() == pytest.approx(cubic, abs=1e-5)


def test_the_exact_oracle_agrees_with_its_series_for_small_and_large_alpha() -> None:
    small, large = -10.0, 8.0
    series = 0.5 * (np.euler_gamma + math.log(2)) - 0.5 * small - 0.5 * math.exp(small)
    u = 0.5 * math.exp(-large)
    assert exact_kl(small) == pytest.approx(series, abs=1e-7)
    assert exact_kl(large) == pytest.approx(u - u * u / 3, abs=1e-9)


def test_the_packages_exact_kl_is_the_oracles() -> None:
    at = np.array([[-10.0, -4.0, -1.0], [0.0, 3.0, 10.0]])
    np.testing.assert_allclose(divergence.exact_kl(at), np.vectorize(exact_kl)(at), rtol=1e-9, atol=1e-13)


def test_sigmoid_kl_is_within_its_published_error_of_the_exact_kl() -> None:
    exact = np.array([exact_kl(at) for at in GRID])
    assert np.abs(values(sigmoid_kl, GRID) - exact).max() < 0.0095


def test_sigmoid_kl_has_nearly_the_exact_gradient() -> None:
    assert np.abs(slopes(sigmoid_kl, GRID) - exact_slope(GRID)).max() < 0.015


def test_cubic_kl_is_within_its_published_error_for_alpha_up_to_1() -> None:
    at = GRID[GRID <= 0.0]
    exact = np.array([exact_kl(x) for x in at])
    assert np.abs(values(cubic_kl, at) - exact).max() < 0.0405


def test_cubic_kl_has_the_exact_limit_as_alpha_goes_to_0() -> None:
    assert values(cubic_kl, np.array([-14.0]))[0] == pytest.approx(exact_kl(-14.0), abs=3e-6)


def test_the_kls_table_has_the_largest_misses_up_to_the_ends() -> None:
    found = measures.find("kl")({}, Path(), measures.TOY)
    for name, kl, end in (("sigmoid", sigmoid_kl, 10.0), ("cubic", cubic_kl, 0.0)):
        at = np.linspace(-10.0, end, 401)
        missed = values(kl, at) - np.array([exact_kl(x) for x in at])
        (record,) = found[name]
        assert record["deviation"] == pytest.approx(np.abs(missed).max(), rel=1e-3)
        assert record["free"] == pytest.approx((missed.max() - missed.min()) / 2, rel=1e-3)
        assert record["slope"] == pytest.approx(np.abs(slopes(kl, at) - exact_slope(at)).max(), rel=1e-3)


def test_both_approximations_fall_strictly_with_alpha() -> None:
    assert np.diff(values(sigmoid_kl, np.linspace(-20, 20, 2001))).max() < 0
    assert slopes(sigmoid_kl, np.linspace(-20, 20, 2001)).max() < 0
    assert np.diff(values(cubic_kl, np.linspace(-20, 0, 2001))).max() < 0
    assert slopes(cubic_kl, np.linspace(-20, 0, 2001)).max() < 0


def test_bounded_kl_is_the_cubics_sum_and_above_1_that_at_1_with_its_slope() -> None:
    at = np.linspace(-20.0, 0.0, 401)
    x = torch.tensor(at, requires_grad=True)
    total = divergence.bounded_kl(x)
    assert total.item() == pytest.approx(values(cubic_kl, at).sum(), rel=1e-12)
    (slope,) = torch.autograd.grad(3.0 * total, x)
    np.testing.assert_allclose(slope.numpy(), 3.0 * slopes(cubic_kl, at), rtol=1e-12)

    above = torch.tensor([[0.5, 30.0]], dtype=torch.float64, requires_grad=True)
    outside = divergence.bounded_kl(above)
    assert outside.item() == pytest.approx(2.0 * cubic_kl(torch.zeros((), dtype=torch.float64)).item(), rel=1e-12)
    (slope,) = torch.autograd.grad(outside, above)
    np.testing.assert_allclose(slope.numpy(), np.full((1, 2), slopes(cubic_kl, np.zeros(1))[0]), rtol=1e-12)


def test_sigmoid_kl_goes_to_0_with_infinite_alpha() -> None:
    tail = values(sigmoid_kl, np.array([20.0, 40.0, 80.0]))
    assert (tail > 0).all()
    assert tail[0] < 2e-9


def test_elementwise_functions_keep_shape_and_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 3, 4, dtype=dtype)
        for f in (sigmoid_kl, cubic_kl):
            assert f(x).shape == x.shape
            assert f(x).dtype == dtype


def test_log_alpha_is_the_log_of_variance_over_squared_mean() -> None:
    theta = torch.tensor([0.5, -2.0, 1e-3], dtype=torch.float64)
    sigma2 = torch.tensor([0.25, 4e-4, 9.0], dtype=torch.float64)
    expected = torch.tensor([0.25 / 0.25, 4e-4 / 4.0, 9.0 / 1e-6], dtype=torch.float64).log()
    torch.testing.assert_close(log_alpha(theta, sigma2.log()), expected, rtol=1e-9, atol=1e-9)


def test_log_alpha_is_finite_and_large_at_a_zero_weight() -> None:
    for dtype in (torch.float32, torch.float64):
        value = log_alpha(torch.zeros(1, dtype=dtype), torch.full((1,), -10.0, dtype=dtype))
        assert torch.isfinite(value).all()
        assert value.item() > 3.0


def test_additive_kl_is_the_sum_of_the_terms_in_float64() -> None:
    theta, log_sigma2 = weights(2001)
    value = additive_kl(theta, log_sigma2)
    assert value.shape == ()
    assert value.item() == pytest.approx(sigmoid_kl(log_alpha(theta, log_sigma2)).sum().item(), rel=1e-9)
    assert value.item() == pytest.approx(textbook_kl(theta, log_sigma2).item(), rel=1e-9)


def test_additive_kl_is_the_sum_of_the_terms_in_float32() -> None:
    theta, log_sigma2 = weights(2001, torch.float32)
    reference = textbook_kl(theta.double(), log_sigma2.double()).item()
    assert additive_kl(theta, log_sigma2).item() == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("start", [-10.0, -9.73, -7.31, -3.3, 0.7])
def test_float32_kl_of_a_removed_layer_is_0_to_within_rounding_and_never_negative(start: float) -> None:
    log_sigma2 = torch.full((10_000,), start)
    theta = torch.exp((log_sigma2 - 20.0) / 2) * torch.linspace(0.9, 1.1, 10_000)
    per_weight = additive_kl(theta, log_sigma2).item() / theta.numel()
    assert 0.0 <= per_weight < 1e-6


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_additive_kl_has_the_gradient_of_the_textbook_formula(dtype: torch.dtype, rel: float) -> None:
    theta, log_sigma2 = weights(1001, dtype)
    # For |theta| above 1e-3 the epsilon that guards theta = 0 changes log alpha by at most 1e-10.
    keep = theta.abs() > 1e-3
    theta, log_sigma2 = theta[keep].requires_grad_(), log_sigma2[keep].requires_grad_()
    gradients = torch.autograd.grad(3.0 * additive_kl(theta, log_sigma2), (theta, log_sigma2))
    plain = theta.detach().double().requires_grad_(), log_sigma2.detach().double().requires_grad_()
    expected = torch.autograd.grad(3.0 * textbook_kl(*plain), plain)
    for got, want in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=rel, atol=rel * 1e-3)


def test_additive_kl_passes_gradcheck() -> None:
    theta, log_sigma2 = weights(41)
    theta, log_sigma2 = theta[4:-4].requires_grad_(), log_sigma2[4:-4].requires_grad_()
    assert torch.autograd.gradcheck(additive_kl, (theta, log_sigma2), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_additive_kl_pulls_means_to_0_and_variances_up() -> None:
    theta, log_sigma2 = weights(201)
    theta.requires_grad_()
    log_sigma2.requires_grad_()
    by_theta, by_log_sigma2 = torch.autograd.grad(additive_kl(theta, log_sigma2), (theta, log_sigma2))
    assert (by_theta * theta > 0).all()
    assert (by_log_sigma2 < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_additive_kl_at_a_zero_weight_is_finite_with_zero_gradient_for_it(dtype: torch.dtype) -> None:
    theta = torch.zeros(5, dtype=dtype, requires_grad=True)
    log_sigma2 = torch.tensor([-20.0, -10.0, 0.0, 10.0, 20.0], dtype=dtype, requires_grad=True)
    value = additive_kl(theta, log_sigma2)
    value.backward()
    assert torch.isfinite(value)
    assert (theta.grad == 0).all()
    assert torch.isfinite(log_sigma2.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [-20.0, 20.0])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 10.0])
def test_additive_kl_is_finite_with_the_limiting_slope_at_extreme_alpha(dtype: torch.dtype, at: float, size: float) -> None:
    theta = torch.tensor([size, -size], dtype=dtype, requires_grad=True)
    log_sigma2 = torch.full((2,), at + 2 * math.log(size), dtype=dtype, requires_grad=True)
    value = additive_kl(theta, log_sigma2)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(theta.grad).all()
    # -1/2 as alpha -> 0, and 0 as alpha -> infinity.
    limit = -0.5 if at < 0 else 0.0
    torch.testing.assert_close(log_sigma2.grad, torch.full_like(log_sigma2, limit), rtol=0, atol=1e-4)


def test_a_second_derivative_of_additive_kl_is_right_or_refused() -> None:
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    log_sigma2 = torch.zeros(3, dtype=torch.float64)
    (plain,) = torch.autograd.grad(textbook_kl(theta, log_sigma2), theta, create_graph=True)
    (expected,) = torch.autograd.grad(plain.sum(), theta)
    (first,) = torch.autograd.grad(additive_kl(theta, log_sigma2), theta, create_graph=True)
    try:
        (second,) = torch.autograd.grad(first.sum(), theta)
    except RuntimeError:
        return
    torch.testing.assert_close(second, expected)


def test_clipped_additive_kl_has_value_and_gradients_of_the_clipped_log_alpha() -> None:
    theta = torch.logspace(-9, 1, 301, dtype=torch.float64).requires_grad_()
    log_sigma2 = torch.full_like(theta, -6.0).requires_grad_()
    naive = sigmoid_kl((log_sigma2 - theta.square().log()).clamp(-8.0, 8.0)).sum()
    fast = additive_kl(theta, log_sigma2, 8.0)
    assert fast.item() == pytest.approx(naive.item(), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(fast, (theta, log_sigma2)), torch.autograd.grad(naive, (theta, log_sigma2)), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)
        assert (ours == 0).any() and (ours != 0).any()
