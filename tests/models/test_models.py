"""The papers' networks: golden weight counts, shapes, start, and a build that is a function of its seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from svdo.data import DataSpec
from svdo.errors import UserError
from svdo.models import MODELS, Model, build, find
from svdo.models.convnet import ConvNet
from svdo.models.lenet import LeNet5, LeNet300
from svdo.models.mlp import MLP
from svdo.models.vgg import VGG

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def weights(network: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def biases(network: nn.Module) -> int:
    return sum(layer.bias.numel() for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (LeNet300(), MNIST, 266_200),
        (LeNet5(), MNIST, 430_500),
        (VGG(k=0.25), CIFAR, 937_392),
        (VGG(k=0.5), CIFAR, 3_746_144),
        (VGG(k=1.0), CIFAR, 14_977_728),
        (VGG(k=1.5), CIFAR, 33_694_752),
        (MLP(depth=3, width=500), MNIST, 784 * 500 + 2 * 500 * 500 + 500 * 10),
        (MLP(depth=0), MNIST, 7840),
        (ConvNet(), CIFAR, 25 * (3 * 32 + 32 * 64) + 64 * 64 * 128 + 128 * 128 + 1280),
        (ConvNet(k=0.5), MNIST, 25 * (16 + 16 * 32) + 32 * 49 * 64 + 64 * 64 + 640),
    ],
)
def test_golden_weight_counts(model: Model, shape: tuple[int, int, int], count: int) -> None:
    with torch.device("meta"):
        assert weights(build(model, DataSpec(shape, 10), seed=0)) == count


@pytest.mark.parametrize(("model", "count"), [(LeNet300(), 266_610), (LeNet5(), 431_080)])
def test_golden_counts_with_biases(model: Model, count: int) -> None:
    network = build(model, DataSpec(MNIST, 10), seed=0)
    assert weights(network) + biases(network) == count
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_logit_per_class(name: str) -> None:
    model = find(name)()
    if isinstance(model, VGG):
        model.k = 1 / 32
    shape = CIFAR if isinstance(model, VGG) else MNIST
    network = build(model, DataSpec(shape, 7), seed=0)
    assert network(torch.zeros(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("name", MODELS)
def test_build_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(name: str) -> None:
    model = VGG(k=1 / 32) if name == "vgg" else find(name)()
    shape = CIFAR if name == "vgg" else MNIST
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = build(model, DataSpec(shape, 10), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    again, other = (
        build(model, DataSpec(shape, 10), seed=3).state_dict(),
        build(model, DataSpec(shape, 10), seed=4).state_dict(),
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = [key for key in first if key.endswith("weight") and first[key].dim() > 1]
    assert random
    assert all(not torch.equal(first[key], other[key]) for key in random)


def test_lenets_start_as_the_authors_code_does() -> None:
    for model in (LeNet300(), LeNet5()):
        for layer in build(model, DataSpec(MNIST, 10), seed=0).modules():
            if isinstance(layer, nn.Linear):
                n = layer.weight.numel()
                # Standard error of a sample deviation: s / sqrt(2n); five of them.
                assert layer.weight.std().item() == pytest.approx(0.01, abs=0.01 * 5 / math.sqrt(2 * n))
                assert abs(layer.weight.mean().item()) < 5 * 0.01 / math.sqrt(n)
                # A normal, not a uniform of the same deviation, which ends at sqrt(3) deviations.
                assert layer.weight.abs().max() > 0.025
            if isinstance(layer, nn.Conv2d):
                fan_in, fan_out = layer.in_channels * 25, layer.out_channels * 25
                bound = math.sqrt(6 / (fan_in + fan_out))
                assert 0.97 * bound < layer.weight.abs().max().item() <= bound
                assert layer.weight.abs().mean().item() == pytest.approx(bound / 2, rel=0.1)
            if isinstance(layer, nn.Linear | nn.Conv2d):
                assert layer.bias.count_nonzero() == 0


def test_mlp_starts_with_variance_two_over_inputs() -> None:
    layers = [m for m in build(MLP(), DataSpec(MNIST, 10), seed=0).modules() if isinstance(m, nn.Linear)]
    assert [layer.in_features for layer in layers] == [784, 500, 500, 500]
    for layer in layers:
        spread = 5 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=spread)
        assert layer.bias.count_nonzero() == 0


def test_mlp_starts_with_the_deviation_that_it_is_told() -> None:
    net = build(MLP(width=300, start_std=0.01), DataSpec((1, 28, 28), 10), seed=0)
    assert [m.weight.std().item() for m in net if isinstance(m, nn.Linear)] == pytest.approx([0.01] * 4, rel=0.05)


def test_signal_neither_dies_nor_explodes_through_a_deep_mlp() -> None:
    network = build(MLP(depth=8), DataSpec(MNIST, 10), seed=0)
    x = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert 0.3 < network(x).std().item() < 5.0


def test_lenet5_on_color_images_follows_their_shape() -> None:
    network = build(LeNet5(), DataSpec(CIFAR, 10), seed=0)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert weights(network) == 3 * 20 * 25 + 20 * 50 * 25 + 50 * 25 * 500 + 5000


def test_a_network_too_large_for_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="16 x 16"):
        build(LeNet5(), DataSpec((1, 15, 28), 10), seed=0)
    assert build(LeNet5(), DataSpec((1, 16, 16), 10), seed=0)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    with pytest.raises(UserError, match="32 x 32"):
        build(VGG(), DataSpec(MNIST, 10), seed=0)


def test_impossible_settings_and_unknown_models_are_refused() -> None:
    for model in (MLP(depth=-1), MLP(width=0), VGG(k=0.01), LeNet5(dropout={"fc1": 1.0}), LeNet5(dropout={"*": -0.1})):
        with pytest.raises(UserError):
            model.check()
    with pytest.raises(UserError, match=r"lenet300.*lenet5.*vgg"):
        find("resnet")
    for name in MODELS:
        find(name)().check()
