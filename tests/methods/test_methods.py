"""The contract that every registered method keeps, then what each method claims, against weight sampling and exact formulas.

The contract needs no edit when a method is registered. Statistical tests draw N outputs at fixed seeds and allow five
standard errors, which a right implementation exceeds about once in 10^6 comparisons.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.special import dawsn
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.func import functional_call

import svdo
from svdo.layers import NoisyLayer, noisy_layers
from svdo.methods import METHODS
from svdo.methods.binary import BinaryNoise

N = 100_000
LAYERS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda bias: nn.Linear(6, 4, bias=bias), (6,)),
    "linear_sequence": (lambda bias: nn.Linear(6, 4, bias=bias), (5, 6)),
    "linear_image": (lambda bias: nn.Linear(6, 4, bias=bias), (3, 5, 6)),
    "conv": (lambda bias: nn.Conv2d(2, 4, 3, bias=bias), (2, 5, 5)),
    "conv_stride_padding": (lambda bias: nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=bias), (2, 6, 5)),
    "conv_groups": (lambda bias: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=bias), (4, 5, 5)),
    "conv_dilated_reflect": (
        lambda bias: nn.Conv2d(2, 4, (3, 2), dilation=2, padding=2, padding_mode="reflect", bias=bias),
        (2, 6, 6),
    ),
}

every_method = pytest.mark.parametrize("method", METHODS)
every_layer = pytest.mark.parametrize("kind", LAYERS)
both_biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])


def make(method: str, kind: str, bias: bool = True) -> tuple[nn.Module, nn.Module, Tensor]:
    """A plain layer, its conversion, and a batch for both; weights and biases of size about 1."""
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    plain = build(bias)
    for p in plain.parameters():
        nn.init.normal_(p)
    return plain, svdo.convert(plain, method), torch.randn(8, *shape)


def noise_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in layer.named_parameters() if name.startswith("noise.")]


def is_noisy(module: nn.Module) -> bool:
    return any(layer.noise.random for _, layer in noisy_layers(module))


def filled(layer: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in noise_parameters(layer):
            p.fill_(value)


# ----------------------------------------------------------------------------------------------- the contract


@every_method
@every_layer
@both_biases
def test_training_and_evaluation_give_finite_outputs_and_gradients(method: str, kind: str, bias: bool) -> None:
    plain, layer, x = make(method, kind, bias)
    for training in (True, False):
        layer.train(training).zero_grad()
        y = layer(x)
        assert y.shape == plain(x).shape
        assert torch.isfinite(y).all()
        (y.square().sum() + svdo.kl(layer)).backward()
        assert dict(layer.named_parameters())["weight"].grad.count_nonzero() > 0
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    assert (layer.bias is not None) == bias


@every_method
@every_layer
def test_every_noise_parameter_gets_a_gradient_from_the_training_loss(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    (layer.train()(x).square().sum() + svdo.kl(layer)).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in layer.parameters())


@every_method
@every_layer
@pytest.mark.parametrize("value", [-20.0, 20.0])
def test_extreme_noise_parameters_and_zero_weights_keep_everything_finite(method: str, kind: str, value: float) -> None:
    _, layer, x = make(method, kind)
    with torch.no_grad():
        layer.weight[0] = 0.0
    filled(layer, value)
    for training in (True, False):
        layer.train(training).zero_grad()
        y, kl = layer(x), svdo.kl(layer)
        (y.sum() + kl).backward()
        assert torch.isfinite(y).all()
        assert torch.isfinite(kl)
        assert kl.item() >= 0.0
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@every_method
@every_layer
def test_kl_is_a_finite_scalar_that_is_not_negative(method: str, kind: str) -> None:
    _, layer, _ = make(method, kind)
    for value in (None, -12.0, -3.0, -0.5, 0.0, 2.0, 8.0):
        if value is not None:
            filled(layer, value)
        kl = svdo.kl(layer)
        assert kl.shape == ()
        assert torch.isfinite(kl)
        assert kl.item() >= 0.0


@every_method
def test_kl_of_a_network_is_the_sum_over_its_layers(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    parts, whole = [svdo.convert(net[i], method) for i in (0, 2, 4)], svdo.convert(net, method)
    if len(list(whole.parameters())) < sum(len(list(part.parameters())) for part in parts):
        return  # the layers share a prior, whose own penalty counts once
    assert svdo.kl(whole).item() == pytest.approx(sum(svdo.kl(part).item() for part in parts), rel=1e-6)


@every_method
@every_layer
def test_evaluation_is_deterministic_and_training_is_noisy(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert torch.equal(layer(x), layer(x)) is not is_noisy(layer)
    layer.eval()
    with svdo.sampling(layer):
        assert torch.equal(layer(x), layer(x)) is not is_noisy(layer)


@every_method
@every_layer
def test_examples_of_one_batch_get_their_own_noise(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    y = layer.train()(x[:1].expand_as(x)).flatten(1)
    different = ((y - y[0]).abs().amax(1) > 1e-5).sum()
    # Noise of few bits may coincide between two of the eight examples, hardly between most of them.
    assert different >= 4 if is_noisy(layer) else different == 0


@every_method
@every_layer
@both_biases
def test_evaluation_is_a_plain_layer_with_masked_weights(method: str, kind: str, bias: bool) -> None:
    plain, layer, x = make(method, kind, bias)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in noise_parameters(layer):  # scattered, so that a method with a threshold removes some weights
            p.copy_(6.0 * torch.randn(p.shape, generator=generator))
        for mask in svdo.masks(layer).values():
            plain.weight.mul_(mask)
    torch.testing.assert_close(layer.eval()(x), plain(x))
    assert sum(s.nonzero for s in svdo.sparsity(layer)) == plain.weight.count_nonzero()


@every_method
@every_layer
def test_a_saved_state_gives_equal_outputs_and_equal_kl(method: str, kind: str) -> None:
    plain, layer, x = make(method, kind)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = svdo.convert(plain, method)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(x), layer.eval()(x))
    assert torch.equal(svdo.kl(fresh), svdo.kl(layer))
    outputs = []
    for model in (fresh, layer):
        torch.manual_seed(5)
        outputs.append(model.train()(x))
    assert torch.equal(*outputs)


@every_method
@every_layer
def test_a_deep_copy_behaves_alike_and_shares_nothing(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    assert torch.equal(svdo.kl(twin), svdo.kl(layer))
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


@every_method
def test_include_and_exclude_reach_every_method(method: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    noisy = [name for name, _ in noisy_layers(svdo.convert(net, method))]
    chosen = [name for name, _ in noisy_layers(svdo.convert(net, method, include=["0", "1"], exclude=["1"]))]
    assert noisy in ([], ["0", "1", "2"])
    assert chosen == [name for name in noisy if name == "0"]


@every_method
@every_layer
def test_training_gradients_are_those_of_finite_differences(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    layer, x = layer.double().train(), x[:2].double().requires_grad_()
    with torch.no_grad():
        for p in noise_parameters(layer):
            p.sub_(1.0)  # off any bound where the derivative jumps
    names, values = zip(*layer.named_parameters(), strict=True)
    values = tuple(v.detach().clone().requires_grad_() for v in values)

    def output(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(7)
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *values), fast_mode=True)


@every_method
@every_layer
def test_kl_gradients_are_those_of_finite_differences(method: str, kind: str) -> None:
    _, layer, _ = make(method, kind)
    if not isinstance(layer, NoisyLayer):
        assert svdo.kl(layer).item() == 0.0
        return
    layer = layer.double()
    for p in noise_parameters(layer):
        p.data.sub_(1.0)
    value = svdo.kl(layer)
    if not value.requires_grad:
        assert value.item() == 0.0
        return
    parameters = [p for p in layer.parameters() if p is not layer.bias]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    for p, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        step, moved = 1e-6, []
        for sign in (1, -1):
            p.data.add_(direction, alpha=sign * step)
            moved.append(svdo.kl(layer).item())
            p.data.add_(direction, alpha=-sign * step)
        slope = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-5)


@every_method
def test_kl_of_the_bias_is_none(method: str) -> None:
    for kind in ("linear", "conv"):
        _, with_bias, _ = make(method, kind, bias=True)
        with torch.no_grad():
            before = svdo.kl(with_bias).item()
            with_bias.bias.mul_(100.0)
            assert svdo.kl(with_bias).item() == before


@every_method
@every_layer
def test_the_bias_is_in_the_mean_alone(method: str, kind: str) -> None:
    _, layer, x = make(method, kind)
    outputs = []
    for shift in (0.0, 100.0):
        with torch.no_grad():
            layer.bias.fill_(shift)
        torch.manual_seed(3)
        outputs.append(layer.train()(x))
    torch.testing.assert_close(outputs[1] - outputs[0], torch.full_like(outputs[0], 100.0), rtol=0, atol=1e-3)


@every_method
def test_a_zero_input_has_no_noise_beyond_the_numerical_floor(method: str) -> None:
    for kind in LAYERS:
        _, layer, x = make(method, kind, bias=False)
        assert layer.train()(torch.zeros_like(x)).abs().max() < 1e-3


@every_method
def test_a_training_pass_does_not_touch_its_input(method: str) -> None:
    for kind in LAYERS:
        _, layer, x = make(method, kind)
        before = x.clone()
        layer.train()(x)
        assert torch.equal(x, before)


@every_method
def test_memory_format_does_not_change_the_mathematics(method: str) -> None:
    _, layer, x = make(method, "conv")
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.eval()(channels_last), layer(x))
    repeated = channels_last[:1].expand(4000, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    y = layer.train()(repeated)
    z = layer(repeated.contiguous())
    error = (
        5 * (y.var(0) / 2000).sqrt() + 1e-6 * y.abs().max()
    )  # each format has kernels of its own, and they round in another order
    assert ((y.mean(0) - z.mean(0)).abs() <= error).all()
    if is_noisy(layer):
        # Neighbouring positions and channels are never copies of one another's noise.
        correlation = torch.corrcoef((y - y.mean(0)).flatten(1).T)
        assert (correlation - torch.eye(len(correlation))).abs().max() < 0.999


@every_method
def test_one_input_channel_loses_no_channels_last(method: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = svdo.convert(network, method).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for training in (True, False):
        first = model.train(training)[0](torch.randn(8, 1, 9, 9))
        assert first.is_contiguous(memory_format=torch.channels_last)
        assert not first.is_contiguous()


@every_method
def test_an_unbatched_image_is_an_image_of_a_batch_of_one(method: str) -> None:
    for kind in ("conv", "conv_groups"):
        _, layer, x = make(method, kind)
        outputs = []
        for picture in (x[0], x[:1]):
            torch.manual_seed(2)
            outputs.append(layer.train()(picture))
        torch.testing.assert_close(outputs[0], outputs[1][0])


@every_method
def test_settings_are_labelled_checked_and_named_as_registered(method: str) -> None:
    settings = METHODS[method]()
    settings.check()
    assert settings.name == method
    assert settings.label


def test_labels_are_distinct() -> None:
    assert len({cls.label for cls in METHODS.values()}) == len(METHODS)


# -------------------------------------------------------------------------------------- what is sampled


def draw(layer: nn.Module, x: Tensor, n: int = N, seed: int = 11) -> Tensor:
    """n independent training outputs of one example, float64 (n, ...)."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return layer.train()(x.expand(n, *x.shape)).double()


def position(y: Tensor) -> Tensor:
    """The outputs (n, channels) of one example at one position: row 0, column 1, where padding takes part."""
    return y if y.dim() == 2 else y[:, :, 0, 1]


def patch(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs that the weights of one output position multiply, float64, broadcastable to the weight."""
    if isinstance(layer, nn.Linear):
        return x.double()
    padded = F.pad(x, (1, 1, 1, 1))
    return padded[:, 0:3, 2:5].double()  # stride 2: row 0 starts at 0, column 1 at 2


def one_layer(kind: str, method: str, **settings: object) -> tuple[nn.Module, Tensor]:
    """A converted layer with weights of moderate size, and one example."""
    torch.manual_seed(4)
    plain = nn.Linear(7, 3) if kind == "dense" else nn.Conv2d(2, 3, 3, stride=2, padding=1)
    for p in plain.parameters():
        nn.init.normal_(p)
    x = torch.randn(7) if kind == "dense" else torch.randn(2, 5, 5)
    return svdo.convert(plain, method, **settings), x


def summed(products: Tensor) -> Tensor:
    """Sum over everything but the first (output) dimension."""
    return products.flatten(1).sum(1)


def assert_same_mean(a: Tensor, b: Tensor) -> None:
    """Sample means (n, d) agree within five standard errors of their difference."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


def assert_same_variance(a: Tensor, b: Tensor) -> None:
    """Sample variances (n, d) agree within five standard errors, from the samples' own fourth moments."""
    squares = [(s - s.mean(0)).square() for s in (a, b)]
    assert_same_mean(*squares)


def covariance_error(y: Tensor) -> Tensor:
    """Five standard errors of each entry of the sample covariance matrix of y (n, d)."""
    centred = y - y.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    return 5 * products.std(0) / math.sqrt(len(y))


POSTERIORS: dict[str, tuple[str, dict[str, object]]] = {
    "gaussian_b": ("gaussian_b", {"rates": {"*": 0.3}}),
    "vd_b": ("vd_b", {"rates": {"*": 0.3}}),
    "sparsevd": ("sparsevd", {"log_sigma2": -1.0, "train_clip": False}),
    "sparsevd_multiplicative": ("sparsevd", {"parameterization": "multiplicative", "train_clip": False}),
}


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("case", POSTERIORS)
def test_local_reparameterization_has_the_moments_of_sampled_weights(kind: str, case: str) -> None:
    method, settings = POSTERIORS[case]
    layer, x = one_layer(kind, method, **settings)
    theta = layer.weight.detach().double()
    generator = torch.Generator().manual_seed(0)
    if method == "gaussian_b":
        sigma = (0.3 / 0.7) ** 0.5 * theta.abs()
    else:
        (raw,) = noise_parameters(layer)
        with torch.no_grad():  # every weight its own noise
            raw.copy_(torch.rand(raw.shape, generator=generator) * 3 - 3)
        spread = raw.detach().double()
        sigma = torch.exp(spread / 2) if case == "sparsevd" else torch.exp(spread / 2) * theta.abs()
    inputs = patch(layer, x)
    sampled = []
    for _ in range(20):  # weights in twenty batches, to stay small
        epsilon = torch.randn(N // 20, *theta.shape, generator=generator, dtype=torch.float64)
        weights = theta + sigma * epsilon
        sampled.append((weights * inputs).flatten(2).sum(2) + layer.bias.detach().double())
    by_weights, by_layer = torch.cat(sampled), position(draw(layer, x))
    assert_same_mean(by_layer, by_weights)
    assert_same_variance(by_layer, by_weights)
    # The shape too: both are normal.
    for j in range(3):
        assert ks_2samp(by_layer[:, j].numpy(), by_weights[:, j].numpy()).statistic < 1.95 * math.sqrt(2 / N)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("pair", [("gaussian_a", "gaussian_b"), ("vd_a", "vd_b"), ("vd_a2", "vd_b"), ("binary", "gaussian_b")])
def test_types_a_and_b_share_marginals_and_differ_in_covariance(kind: str, pair: tuple[str, str]) -> None:
    rate = 0.3
    alpha = rate / (1 - rate)
    (a, x), (b, _) = (one_layer(kind, method, rates={"*": rate}) for method in pair)
    theta, inputs = a.weight.detach().double(), patch(a, x)
    y_a, y_b = position(draw(a, x)), position(draw(b, x, seed=12))
    # Exactly: the outputs are sums of (input x noise) theta with noise of variance alpha.
    responses = (theta * inputs).flatten(1)
    full = alpha * responses @ responses.T
    mean = responses.sum(1) + a.bias.detach().double()
    for y in (y_a, y_b):
        assert ((y.mean(0) - mean).abs() < 5 * (full.diag() / N).sqrt()).all()
    assert_same_variance(y_a, y_b)
    assert ((torch.cov(y_a.T) - full).abs() < covariance_error(y_a)).all()
    assert ((torch.cov(y_b.T) - full.diag().diag()).abs() < covariance_error(y_b)).all()
    # The two claims are far apart here, so neither type can pass for the other.
    off = ~torch.eye(3, dtype=torch.bool)
    assert (full.abs() > 10 * covariance_error(y_a))[off].any()


@pytest.mark.parametrize("method", ["gaussian_b", "vd_b", "sparsevd"])
def test_local_reparameterization_of_a_convolution_is_independent_between_positions(method: str) -> None:
    torch.manual_seed(4)
    layer, x = svdo.convert(nn.Conv2d(1, 1, 3), method), torch.randn(1, 4, 4)
    for p in noise_parameters(layer):
        nn.init.constant_(p, -1.0)
    y = draw(layer, x).flatten(1)
    outside = ~torch.eye(4, dtype=torch.bool)
    assert (torch.cov(y.T).abs() < covariance_error(y))[outside].all()


@pytest.mark.parametrize("method", ["binary", "gaussian_a", "vd_a"])
def test_input_noise_of_a_convolution_is_drawn_per_activation(method: str) -> None:
    # A 1 x 1 convolution passes each activation through: positions share a weight but no noise.
    layer = svdo.convert(nn.Conv2d(2, 1, 1, bias=False), method)
    nn.init.ones_(layer.weight)
    x = torch.zeros(2, 1, 3)
    x[0] = 1.0
    y = draw(layer, x).flatten(1)
    torch.testing.assert_close(torch.cov(y.T).diag(), torch.ones(3, dtype=torch.float64), rtol=0.05, atol=0)
    outside = ~torch.eye(3, dtype=torch.bool)
    assert (torch.cov(y.T).abs() < covariance_error(y))[outside].all()


@pytest.mark.parametrize("method", ["vd_a", "vd_a2"])
def test_type_a_gives_each_input_unit_its_own_alpha(method: str) -> None:
    for plain, x in ((nn.Linear(3, 3, bias=False), torch.ones(3)), (nn.Conv2d(3, 3, 1, bias=False), torch.ones(3, 1, 1))):
        layer = svdo.convert(plain, method)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(3).view_as(layer.weight))
            noise_parameters(layer)[0].copy_(torch.tensor([0.1, 0.4, 0.9]).log())
        variance = draw(layer, x).flatten(1).var(0)
        # The variance of a normal's sample variance is 2 v^2 / n.
        expected = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
        assert ((variance - expected).abs() < 5 * expected * math.sqrt(2 / N)).all()


def test_binary_dropout_drops_at_the_rate_and_keeps_the_mean() -> None:
    layer = svdo.convert(nn.Linear(4, 4, bias=False), "binary", rates={"*": 0.2})
    nn.init.eye_(layer.weight)
    y = draw(layer, torch.ones(4))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert (((y == 0).double().mean(0) - 0.2).abs() < 5 * math.sqrt(0.16 / N)).all()


def test_binary_dropout_drops_at_the_rate_in_bfloat16_too() -> None:
    noise = BinaryNoise(0.95)
    y = noise.perturb(torch.ones(400_000, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert abs((y != 0).double().mean().item() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 400_000)  # 8 bits would keep 0.0519


def test_a_dense_layer_on_sequences_draws_noise_at_every_position() -> None:
    for method in ("binary", "gaussian_a", "gaussian_b", "vd_a", "vd_b", "sparsevd"):
        layer, x = one_layer("dense", method)
        for p in noise_parameters(layer):
            nn.init.constant_(p, -1.0)
        y = draw(layer, x.expand(2, 7), n=20_000)[:, :, 0]
        y = y - y.mean(0)
        correlation = (y[:, 0] * y[:, 1]).mean() / y.square().mean()
        assert abs(correlation) < 5 / math.sqrt(20_000), method


# ------------------------------------------------------------------------ 2015: learned alpha, at most 1


VARIATIONAL = ["vd_a", "vd_a2", "vd_b"]


def cubic(alpha: float) -> float:
    """The 2015 KL of one noise variable, with more digits of its constants than the paper prints."""
    constant = -0.5 * (np.euler_gamma + math.log(2))
    terms = 1.161451241083230 * alpha - 1.502041176441722 * alpha**2 + 0.586299206427007 * alpha**3
    return -(constant + 0.5 * math.log(alpha) + terms)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.5])
def test_number_of_kl_terms(kind: str, rate: float) -> None:
    term = cubic(rate / (1 - rate))
    inputs, weights = (7, 21) if kind == "dense" else (2, 54)
    expected = {
        ("vd_a", "unit"): inputs * term,
        ("vd_a", "layer"): inputs * term,
        ("vd_a2", "unit"): inputs * term / 3,
        ("vd_a2", "layer"): inputs * term / 3,
        ("vd_b", "weight"): weights * term,
        ("vd_b", "unit"): weights * term,
        ("vd_b", "layer"): weights * term,
    }
    for (method, sharing), kl in expected.items():
        layer, _ = one_layer(kind, method, sharing=sharing, rates={"*": rate})
        assert svdo.kl(layer).item() == pytest.approx(kl, rel=1e-5), (method, sharing)


@pytest.mark.parametrize(
    ("method", "sharing", "dense", "conv"),
    [
        ("vd_a", "layer", 1, 1),
        ("vd_a", "unit", 7, 2),
        ("vd_b", "layer", 1, 1),
        ("vd_b", "unit", 7, 2),
        ("vd_b", "weight", 21, 54),
    ],
)
def test_number_of_learned_alphas(method: str, sharing: str, dense: int, conv: int) -> None:
    for plain, count in ((nn.Linear(7, 3), dense), (nn.Conv2d(2, 3, 3), conv)):
        converted = svdo.convert(plain, method, sharing=sharing)
        assert sum(p.numel() for p in noise_parameters(converted)) == count


@pytest.mark.parametrize("method", ["vd_a", "vd_b"])
def test_alpha_per_unit_means_one_for_every_input_channel_of_a_grouped_convolution(method: str) -> None:
    converted = svdo.convert(nn.Conv2d(4, 6, 3, groups=2), method, sharing="unit")
    assert sum(p.numel() for p in noise_parameters(converted)) == 4


@pytest.mark.parametrize("sharing", ["layer", "unit"])
def test_grouped_type_a_counts_every_input_channel(sharing: str) -> None:
    layer = svdo.convert(nn.Conv2d(4, 6, 3, groups=2), "vd_a", sharing=sharing, rates={"*": 0.3})
    assert svdo.kl(layer).item() == pytest.approx(4 * cubic(0.3 / 0.7), rel=1e-5)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_shared_and_separate_alphas_mix_into_the_sum_of_their_terms(method: str) -> None:
    layer, _ = one_layer("dense", method, sharing="unit")
    alphas = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    with torch.no_grad():
        (raw,) = noise_parameters(layer)
        raw.copy_(torch.tensor(alphas).log().view_as(raw))
    scale = {"vd_a": 1, "vd_a2": 1 / 3, "vd_b": 3}[method]
    assert svdo.kl(layer).item() == pytest.approx(scale * sum(map(cubic, alphas)), rel=1e-5)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_kl_has_its_full_slope_at_the_bound_where_a_rate_of_one_half_starts(method: str) -> None:
    layer, _ = one_layer("dense", method, rates={"*": 0.5})
    svdo.kl(layer).backward()
    slope = -(0.5 + 1.161451241083230 - 2 * 1.502041176441722 + 3 * 0.586299206427007)  # of one term at alpha = 1
    terms = {"vd_a": 7, "vd_a2": 7 / 3, "vd_b": 21}[method]
    assert sum(p.grad.sum().item() for p in noise_parameters(layer)) == pytest.approx(terms * slope, rel=1e-4)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("method", VARIATIONAL)
def test_alpha_stays_at_most_1_through_steps_that_push_it_up_and_comes_down_at_once(method: str, kind: str) -> None:
    layer, x = one_layer(kind, method, rates={"*": 0.4})
    optimizer = torch.optim.SGD(noise_parameters(layer), lr=1.0)
    layer.train()
    for _ in range(10):  # the KL alone pushes alpha up
        layer(x[None])
        optimizer.zero_grad()
        svdo.kl(layer).backward()
        optimizer.step()
        assert layer.noise.log_alpha(layer.weight).max().item() <= 0.0
        assert svdo.kl(layer).item() >= 0.0
    layer(x[None])
    assert all((p == 0).all() for p in noise_parameters(layer))
    inputs, theta = patch(layer, x), layer.weight.detach().double()
    limit = summed((theta * inputs).square())  # the variance at alpha = 1
    variance = position(draw(layer, x)).var(0)
    assert ((variance - limit).abs() < 5 * limit * math.sqrt(2 / N)).all()
    optimizer.zero_grad()
    (-svdo.kl(layer)).backward()
    optimizer.step()
    assert (layer.noise.log_alpha(layer.weight) < -0.1).all()


@pytest.mark.parametrize("method", VARIATIONAL)
def test_a_start_above_one_half_is_taken_as_alpha_1(method: str) -> None:
    layer, _ = one_layer("dense", method, rates={"*": 0.8})
    assert (layer.noise.log_alpha(layer.weight) == 0).all()


@pytest.mark.parametrize("method", ["gaussian_a", "gaussian_b", "vd_a", "vd_a2", "vd_b"])
@pytest.mark.parametrize(("rate", "alpha"), [(0.5, 1.0), (0.2, 0.25)])
def test_alpha_is_the_variance_p_over_1_minus_p(method: str, rate: float, alpha: float) -> None:
    layer, _ = one_layer("conv", method, rates={"*": rate})
    shown = layer.noise.log_alpha(layer.weight).exp()
    torch.testing.assert_close(shown.expand_as(layer.weight), torch.full_like(layer.weight, alpha))


def test_log_alpha_of_type_a_belongs_to_the_input_channel_of_each_weight() -> None:
    layer = svdo.convert(nn.Conv2d(4, 6, 3, groups=2), "vd_a")
    with torch.no_grad():
        noise_parameters(layer)[0].copy_(torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    shown = layer.noise.log_alpha(layer.weight).expand_as(layer.weight)
    for output in range(6):
        first = -1.0 if output < 3 else -3.0  # outputs 0-2 see channels 0 and 1, outputs 3-5 channels 2 and 3
        assert (shown[output, 0] == first).all()
        assert (shown[output, 1] == first - 1).all()


@pytest.mark.parametrize("method", ["none", "binary", "gaussian_a", "gaussian_b"])
def test_methods_with_fixed_noise_have_no_kl_and_no_noise_parameter(method: str) -> None:
    layer, _ = one_layer("dense", method)
    assert svdo.kl(layer).item() == 0.0
    assert not noise_parameters(layer)


# --------------------------------------------------------------------------- 2017: sparse variational dropout


def exact_kl(log_alpha: float) -> float:
    """2 times the integral of Dawson's function from 0 to exp(-log alpha / 2) / sqrt 2."""
    end = math.exp(-log_alpha / 2) / math.sqrt(2)
    knots = [0.0, *(k for k in (1.0, 4.0, 16.0, 64.0) if k < end), end]
    return 2.0 * sum(quad(dawsn, a, b)[0] for a, b in pairwise(knots))


def sparse_layer(kind: str, log_alpha: Tensor | float, **settings: object) -> tuple[NoisyLayer, Tensor]:
    """A Sparse VD layer (additive) whose weights have the given log alpha."""
    layer, x = one_layer(kind, "sparsevd", **settings)
    with torch.no_grad():
        target = torch.as_tensor(log_alpha).expand_as(layer.weight)
        layer.noise.log_sigma2.copy_(target + 2 * layer.weight.abs().log())
    assert isinstance(layer, NoisyLayer)
    return layer, x


def scattered(kind: str) -> Tensor:
    """Log alphas of which about half lie above the threshold of 3, none within 0.1 of it."""
    shape = (3, 7) if kind == "dense" else (3, 2, 3, 3)
    values = 3 + 4 * torch.randn(shape, generator=torch.Generator().manual_seed(6))
    return torch.where((values - 3).abs() < 0.1, 2.0, values)


@pytest.mark.parametrize("settings", [{}, {"parameterization": "multiplicative", "train_clip": False}])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_sparsevd_kl_is_within_its_published_error_of_the_exact_kl(kind: str, settings: dict[str, object]) -> None:
    layer, _ = one_layer(kind, "sparsevd", log_sigma2=-4.0, **settings)
    la = -4.0 - 2 * layer.weight.detach().double().abs().log()
    exact = sum(exact_kl(v) for v in la.flatten().tolist())
    assert abs(svdo.kl(layer).item() - exact) < 0.0095 * la.numel()
    assert exact > la.numel()  # nothing near 0 that any small number would match


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_sparsevd_removes_exactly_the_weights_at_or_above_the_threshold(kind: str) -> None:
    la = scattered(kind)
    layer, x = sparse_layer(kind, la)
    (mask,) = svdo.masks(layer).values()
    assert torch.equal(mask, la < 3)
    assert 0 < mask.sum() < mask.numel()
    kept = (torch.where(la < 3, layer.weight, 0.0).double() * patch(layer, x)).flatten(1).sum(1)
    got = position(layer.eval()(x[None]))[0].double()
    torch.testing.assert_close(got, kept + layer.bias.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_train_clip_removes_the_mean_everywhere_and_the_variance_of_convolutions_alone(kind: str, clip: bool) -> None:
    la = scattered(kind).clamp(max=6.0)
    layer, x = sparse_layer(kind, la, train_clip=clip)
    kept, inputs, theta = (la < 3).double(), patch(layer, x), layer.weight.detach().double()
    sigma2 = la.double().exp() * theta.square()
    shown = kept if clip else torch.ones_like(kept)
    mean = summed(theta * shown * inputs) + layer.bias.detach().double()
    variance = summed(sigma2 * (shown if kind == "conv" else 1.0) * inputs.square())
    y = position(draw(layer, x))
    assert ((y.mean(0) - mean).abs() < 5 * (variance / N).sqrt()).all()
    assert ((y.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / N)).all()
    # The other two rules would be seen: their variance is far from this one.
    assert (summed(sigma2 * kept * inputs.square()) < 0.5 * summed(sigma2 * inputs.square())).all()


def test_train_clip_leaves_a_removed_convolution_to_the_kl_and_a_removed_dense_layer_to_its_noise() -> None:
    for kind in ("dense", "conv"):
        layer, x = sparse_layer(kind, 5.0)
        y = layer.train()(x[None])
        y.square().sum().backward()
        assert (layer.weight.grad == 0).all()
        if kind == "dense":
            assert (layer.noise.log_sigma2.grad != 0).all()
        else:
            assert (layer.noise.log_sigma2.grad == 0).all()
            # Silent: only the floor under the square root, of deviation 1e-4, is left.
            assert (position(y) - layer.bias).abs().max() < 1e-3


def test_train_clip_does_not_change_the_kl() -> None:
    la = scattered("dense")
    clipped, free = (sparse_layer("dense", la, train_clip=clip)[0] for clip in (True, False))
    gradients = []
    for layer in (clipped, free):
        layer.train()
        svdo.kl(layer).backward()
        gradients.append(layer.noise.log_sigma2.grad)
    assert svdo.kl(clipped).item() == svdo.kl(free).item()
    assert torch.equal(*gradients)
    assert (gradients[0] < 0).all()


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_both_parameterizations_have_the_same_output_distribution(kind: str) -> None:
    la = scattered(kind).clamp(max=2.0)
    additive, x = sparse_layer(kind, la, train_clip=False)
    multiplicative, _ = one_layer(kind, "sparsevd", parameterization="multiplicative", train_clip=False)
    with torch.no_grad():
        noise_parameters(multiplicative)[0].copy_(la)
    y, z = position(draw(additive, x, seed=21)), position(draw(multiplicative, x, seed=22))
    assert_same_mean(y, z)
    assert_same_variance(y, z)
    for j in range(3):
        assert ks_2samp(y[:, j].numpy(), z[:, j].numpy()).statistic < 1.95 * math.sqrt(2 / N)
    assert svdo.kl(additive).item() == pytest.approx(svdo.kl(multiplicative).item(), rel=1e-5)


def test_the_multiplicative_parameterization_starts_from_the_same_posterior() -> None:
    additive, _ = one_layer("dense", "sparsevd", log_sigma2=-6.0)
    multiplicative, _ = one_layer("dense", "sparsevd", log_sigma2=-6.0, parameterization="multiplicative", train_clip=False)
    expected = -6.0 - 2 * additive.weight.detach().abs().log()
    for layer in (additive, multiplicative):
        torch.testing.assert_close(layer.noise.log_alpha(layer.weight).detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_theta_is_free_of_noise_in_the_additive_parameterization_alone() -> None:
    for parameterization, free in (("additive", True), ("multiplicative", False)):
        layer, x = one_layer("dense", "sparsevd", parameterization=parameterization, log_sigma2=-2.0, train_clip=False)
        gradients = []
        for _ in range(2):
            layer.zero_grad()
            layer.train()(x[None]).sum().backward()
            gradients.append(layer.weight.grad.clone())
        assert torch.equal(*gradients) is free
        if free:  # d output / d theta is the input
            torch.testing.assert_close(gradients[0], x.expand(3, 7))


def test_training_on_pure_noise_removes_every_weight_and_on_a_signal_keeps_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    layer = svdo.convert(nn.Linear(4, 1, bias=False), "sparsevd", log_sigma2=-4.0).train()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    y = 2.0 * x[:, :1] + 0.3 * torch.randn(400, 1)  # the first input alone matters
    for _ in range(600):
        optimizer.zero_grad()
        nll = (layer(x) - y).square().mean() / (2 * 0.3**2)
        (nll + svdo.kl(layer) / 400).backward()
        optimizer.step()
    (mask,) = svdo.masks(layer).values()
    assert mask.tolist() == [[True, False, False, False]]
    assert layer.weight[0, 0].item() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("shape", [(40, 30), (6, 5, 3, 3)])
def test_a_clipped_posterior_is_that_of_the_authors_code(shape: tuple[int, ...]) -> None:
    """alpha = exp(clip(log sigma^2 - log theta^2)) times theta^2, with 1e-8 inside a convolution's logarithm."""
    layer: nn.Module = nn.Linear(30, 40) if len(shape) == 2 else nn.Conv2d(5, 6, 3)
    layer = layer.double()
    with torch.no_grad():
        layer.weight.copy_(
            torch.randn(shape, dtype=torch.float64) * torch.logspace(-9, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
        )
    for train_clip in (False, True):
        model = svdo.convert(layer, "sparsevd", clip=8.0, log_sigma2=-6.0, train_clip=train_clip)
        theta, log_sigma2 = model.weight, model.noise.log_sigma2
        mean, variance = model.noise.posterior(theta)
        inner = theta.square() + (1e-8 if len(shape) == 4 else 0.0)
        clipped = (log_sigma2 - inner.log()).clamp(-8.0, 8.0).exp()
        kept = (log_sigma2 - theta.square().log() < 3.0) if train_clip else torch.ones_like(theta, dtype=torch.bool)
        masked = torch.where(kept, theta, 0.0)
        expected = clipped * (masked if len(shape) == 4 else theta).square()
        assert torch.equal(mean, masked)
        assert torch.allclose(variance, expected, rtol=1e-9, atol=0.0)
        for part in (theta, log_sigma2):
            ours, theirs = (torch.autograd.grad(v.sum(), part, retain_graph=True)[0] for v in (variance, expected))
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12), train_clip
