"""The smaller network: its outputs against the masked one's, its sizes against counts done by hand."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svdo
from svdo.export.compact import Compacted, compact


def fill(network: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Random biases and batch norm statistics, random zeros, and of each layer but the last ``share`` of its units silenced."""
    g = torch.Generator().manual_seed(seed)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.running_mean.normal_(generator=g)
                norm.running_var.uniform_(0.5, 2.0, generator=g)
                norm.weight.uniform_(0.5, 1.5, generator=g)
                norm.bias.normal_(generator=g)
        for layer in layers:
            if layer.bias is not None:
                layer.bias.normal_(generator=g)
            if layer is not layers[-1]:
                layer.weight *= torch.rand(layer.weight.shape, generator=g) > 0.3
                layer.weight[torch.rand(len(layer.weight), generator=g) < share] = 0.0
            if layer is not layers[0] and getattr(layer, "groups", 1) == 1:
                layer.weight[:, torch.rand(layer.weight.shape[1], generator=g) < share / 2] = 0.0
    return network.eval()


def difference(network: nn.Module, small: nn.Module, *shape: int) -> float:
    """The largest difference of the outputs for random inputs, relative to the largest output."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, found = network(x.clone()), small(x.clone())
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max())


def checked(network: nn.Module, *shape: int) -> Compacted:
    """The smaller network, after its outputs, at another batch size, and the original have been looked at."""
    before = copy.deepcopy(network.state_dict())
    result = compact(network, torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)))
    assert difference(network, result.module, 3, *shape) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    again = compact(result.module, torch.randn(2, *shape))
    assert again.after == result.after == again.before
    assert isinstance(again.module, nn.Sequential) == isinstance(result.module, nn.Sequential)
    return result


def lenet300() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet5() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


@pytest.mark.parametrize("make", [lenet300, lenet5])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_lenets_with_random_zeros_and_dead_units(make: Callable[[], nn.Module], share: float) -> None:
    torch.manual_seed(0)
    result = checked(fill(make(), share), 1, 28, 28)
    assert isinstance(result.module, nn.Sequential)
    assert not result.notes or share == 0.0
    assert (result.after.macs < 0.5 * result.before.macs) == (share > 0.0)


def test_sizes_of_a_chain_counted_by_hand() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    torch.manual_seed(0)
    with torch.no_grad():
        network[0].weight[1] = 0.0  # constant
        network[0].weight[:, 4] = 0.0  # an input that nobody reads
        network[2].weight[:, 3] = 0.0  # a unit that nobody reads
        network[2].weight[0] = 0.0  # constant
        network[4].weight[:, 2] = 0.0  # not read
    network[0].bias.data[1] = 2.0
    result = checked(network, 6)
    assert {change.name: change.after for change in result.layers} == {"0": (3, 5), "2": (2, 3), "4": (3, 2)}
    assert (result.before.macs, result.after.macs) == (30 + 20 + 12, 15 + 6 + 6)
    assert result.after.parameters == 15 + 3 + 6 + 2 + 6 + 3
    assert result.after.bytes == 4 * result.after.parameters + 8 * 5  # and the places of five inputs
    assert "multiply-adds: 62 -> 27" in str(result)
    assert "0: 5x6 -> 3x5" in str(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_that_is_not_zero_moves_into_the_next_bias(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 2, bias=False)).to(dtype)
    with torch.no_grad():
        network[0].weight[0] = 0.0
        network[0].bias[0] = 0.5
        expected = network[2].weight[:, 0] * torch.sigmoid(torch.tensor(0.5, dtype=dtype))
    result = compact(network, torch.randn(1, 3, dtype=dtype))
    assert result.module[2].bias.dtype == dtype
    torch.testing.assert_close(result.module[2].bias.data, expected)


@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_constant_channels_of_a_padded_convolution(padding: int | str, mode: str) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=padding, padding_mode=mode))
    with torch.no_grad():
        network[0].weight[:4] = 0.0
        network[0].bias[:5] = torch.tensor([0.3, -0.5, 2.0, 0.7, 1.0])
    result = checked(network, 2, 8, 8)
    edged = mode == "zeros" and padding in (1, "same")  # one constant channel stays, for the border, and stands for all three
    assert result.module[0].out_channels == (5 if edged else 4)


def test_average_pooling_that_counts_zeros_beyond_the_border() -> None:
    for pool in (
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, ceil_mode=True),
    ):
        network = fill(nn.Sequential(nn.Conv2d(2, 6, 3), pool, nn.Conv2d(6, 3, 1), nn.Flatten()), 0.5)
        checked(network, 2, 8, 8)


class Residual(nn.Module):
    """1 x 1 convolutions: ``a`` and ``b`` meet in an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(F.relu(x + self.b(x)))


def test_channels_tied_by_an_addition_go_together_or_not_at_all() -> None:
    torch.manual_seed(0)
    network = Residual()
    with torch.no_grad():
        network.a.weight[[0, 1]] = 0.0
        network.b.weight[[1, 2]] = 0.0
        network.b.weight[0, 5] = 0.7  # channel 0 is dead in a alone, 2 in b alone, 1 in both
        network.c.weight[:, 4] = 0.0  # the sum's channel 4 is not read, but b reads it of a
        network.b.weight[0, 4] = 0.7
    result = checked(network, 3, 5, 5)
    assert {change.name: change.after for change in result.layers} == {"a": (5, 3, 1, 1), "b": (5, 5, 1, 1), "c": (2, 5, 1, 1)}
    assert result.notes == []


class Branches(nn.Module):
    """A concatenation of two branches, then a depthwise convolution and a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        x = F.relu(self.grouped(F.relu(self.depthwise(x)))).mean([2, 3])
        return self.last(x)


def test_concatenation_depthwise_and_grouped_convolutions() -> None:
    torch.manual_seed(0)
    network = fill(Branches(), 0.0)
    with torch.no_grad():
        network.grouped.weight[:3] = 0.0  # the first group is constant: all that leads there goes
    result = checked(network, 3, 6, 6)
    sizes = {change.name: change.after for change in result.layers}
    assert sizes["grouped"] == (3, 4, 1, 1)
    assert sizes["depthwise"] == (4, 1, 3, 3)
    assert sizes["a"] == (2, 3, 3, 3)
    assert sizes["b"] == (2, 3, 1, 1)
    assert result.module.get_submodule("norm").num_features == 4


def test_a_dead_depthwise_channel_takes_its_input_with_it() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        network[2].weight[[1, 4]] = 0.0
        network[0].weight[2] = 0.0
    assert checked(network, 3, 6, 6).module[0].out_channels == 3


class UserStyle(nn.Module):
    """Functions, views with fixed numbers, one ReLU in two places: the way tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 4 * 4, 30), nn.Linear(30, 10)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 4 * 4)
        x = F.dropout(self.relu(self.fc1(x)), training=self.training)
        return self.fc2(x)


def test_a_class_with_functions_becomes_a_sequential() -> None:
    torch.manual_seed(0)
    result = checked(fill(UserStyle(), 0.5), 1, 28, 28)
    assert isinstance(result.module, nn.Sequential)
    assert [type(layer).__name__ for layer in result.module][:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert result.module.conv1.out_channels < 6


class WritesInPlace(nn.Module):
    """The ReLU's result is read through the tensor that it wrote into."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        F.relu_(x)
        x += 1.0
        return self.b(x)


class WritesIntoAView(WritesInPlace):
    """What is written cannot be seen in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.view(-1, 2, 3).fill_(0.25)
        return self.b(x)


def test_operations_in_place() -> None:
    torch.manual_seed(0)
    result = checked(fill(WritesInPlace(), 0.6), 4)
    assert result.layers[0].after[0] < 6
    with pytest.raises(svdo.UserError, match="cannot follow"):
        compact(fill(WritesIntoAView(), 0.6), torch.randn(2, 4))


class Left(nn.Module):
    """What is not known, called twice, hooked, or read past its layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        if way == "hooked":
            self.b.register_forward_hook(lambda module, args, output: output * 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if self.way == "unknown":
            x = x.flip(1)
        if self.way == "twice":
            x = F.relu(self.b(x))
        if self.way == "past":
            x = F.linear(x, self.b.weight)
        if self.way == "size":
            x = x * x.size(1)
        return self.c(F.relu(self.b(x)))


@pytest.mark.parametrize("way", ["unknown", "twice", "hooked", "past", "size"])
def test_what_is_not_followed_stays_and_is_named(way: str) -> None:
    torch.manual_seed(0)
    network = fill(Left(way), 0.5)
    result = compact(network, torch.randn(2, 8))
    assert difference(network, result.module, 3, 8) < 1e-5
    word = {"unknown": "flip", "twice": "several places", "hooked": "hooked Linear", "past": "linear", "size": "size"}[way]
    assert any(word in note and note.startswith("all channels stay") for note in result.notes), result.notes
    assert result.layers[0].after[0] == 8


def test_a_network_whose_layers_are_all_dead_is_a_constant() -> None:
    for network, shape in ((lenet5(), (1, 28, 28)), (Branches().eval(), (3, 6, 6)), (Residual(), (3, 5, 5))):
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.weight.zero_()
        result = compact(network, torch.randn(2, *shape))
        x = torch.randn(3, *shape)
        torch.testing.assert_close(result.module(x), network(x))
        assert min(min(change.after) for change in result.layers) >= 1
        assert result.after.parameters < result.before.parameters


def test_no_unit_died() -> None:
    torch.manual_seed(0)
    result = compact(lenet300(), torch.randn(2, 1, 28, 28))
    assert result.notes == ["no unit died: no layer is smaller than before"]
    assert result.before == result.after


def test_a_converted_network_and_the_layers_along_the_last_axis() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    with torch.no_grad():
        network[1].weight[[2, 5]] = 0.0
    model = svdo.convert(network, "sparsevd", log_sigma2=-20.0).train()
    result = compact(model, torch.randn(2, 7, 6))
    assert difference(model.eval(), result.module, 3, 5, 6) < 1e-5
    assert result.module[1].out_features == 7
    assert not any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in result.module.modules())
    assert result.before.macs == 7 * (54 + 54 + 24)


def test_the_smaller_network_can_be_copied_pickled_and_trained() -> None:
    torch.manual_seed(0)
    for network, shape in ((fill(Branches(), 0.4), (3, 6, 6)), (fill(lenet5(), 0.5), (1, 28, 28))):
        small, x = compact(network, torch.randn(2, *shape)).module, torch.randn(4, *shape)
        expected = small(x)
        assert torch.equal(copy.deepcopy(small)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), expected)
        small.train()(x).sum().backward()
        assert all(p.grad is not None for p in small.parameters())


def test_the_smaller_network_goes_through_torch_export() -> None:
    torch.manual_seed(0)
    small = compact(fill(Branches(), 0.4), torch.randn(2, 3, 6, 6)).module
    batch, x = {0: torch.export.Dim("batch")}, torch.randn(4, 3, 6, 6)
    exported = torch.export.export(small, (torch.randn(2, 3, 6, 6),), dynamic_shapes=(batch,)).module()
    torch.testing.assert_close(exported(x), small(x))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


def test_refusals_are_one_line() -> None:
    for network, example, words in (
        (Untraceable(), torch.randn(1, 3), "cannot be traced"),
        (nn.Linear(3, 2), torch.randn(1, 4), "does not run on the example"),
        (nn.Linear(3, 2), "text", "does not run on the example"),
    ):
        with pytest.raises(svdo.UserError, match=words) as error:
            compact(network, example)
        assert "\n" not in str(error.value)


def random_network(seed: int) -> nn.Sequential:
    """A chain of convolutions of any kind, with norms, activations and poolings between."""
    g = torch.Generator().manual_seed(seed)

    def draw(*choices: object) -> object:
        return choices[int(torch.randint(len(choices), (), generator=g))]

    layers: list[nn.Module] = []
    channels = 4
    for _ in range(4):
        width, groups = draw(4, 8), draw(1, 1, 2, 4)
        layers.append(
            nn.Conv2d(
                channels,
                width,
                draw(1, 3),
                padding=draw(0, 1),
                stride=draw(1, 1, 2),
                groups=groups,
                bias=draw(True, False),
                padding_mode=draw("zeros", "zeros", "replicate"),
            )
        )
        layers += [nn.BatchNorm2d(width)] * draw(0, 1)
        layers.append(draw(nn.ReLU(), nn.ELU(), nn.Sigmoid(), nn.Hardswish(), nn.Identity(), nn.PReLU(), nn.PReLU(width)))
        pools = (nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, ceil_mode=True))
        layers += [draw(*pools)] * draw(0, 1)
        channels = width
    tail = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return nn.Sequential(*layers, *tail)


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed: int) -> None:
    torch.manual_seed(seed)
    network = fill(random_network(seed), 0.4, seed)
    checked(network, 4, 20, 20)


class RandomGraph(nn.Module):
    """Operations drawn at random, each on tensors that there already are."""

    KINDS = (
        *("conv", "conv", "conv", "depthwise", "grouped", "norm", "add", "multiply", "cat", "gate"),
        *("relu", "relu_", "sigmoid", "max", "mean", "by size", "affine"),
    )

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = random.Random(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleList()
        widths = [3]
        for _ in range(g.randrange(5, 14)):
            kind, a, b = g.choice(self.KINDS), g.randrange(len(widths)), g.randrange(len(widths))
            width, out = widths[a], g.choice([4, 6, 8])
            if (kind in ("add", "multiply") and widths[b] != width) or (kind == "grouped" and width % 2):
                continue
            if kind == "conv":
                self.layers.append(nn.Conv2d(width, out, g.choice([1, 3]), padding="same", bias=g.random() < 0.7))
            elif kind == "depthwise":
                self.layers.append(nn.Conv2d(width, 2 * width, 3, padding=1, groups=width))
            elif kind == "grouped":
                self.layers.append(nn.Conv2d(width, out, 1, groups=2))
            elif kind == "gate":
                self.layers.append(nn.Conv2d(width, width, 1))
            else:
                self.layers.append(nn.BatchNorm2d(width) if kind == "norm" else nn.Identity())
            self.steps.append((kind, a, b))
            widths.append({"conv": out, "grouped": out, "depthwise": 2 * width, "cat": width + widths[b]}.get(kind, width))
        self.side = g.randrange(len(widths))
        self.last = nn.Linear(4 * widths[-1] + widths[self.side], 3)

    def forward(self, x: Tensor) -> Tensor:
        t = [x]
        operations: dict[str, Callable[[Tensor, Tensor, nn.Module], Tensor]] = {
            "add": lambda a, b, layer: a + b,
            "multiply": lambda a, b, layer: a * b,
            "cat": lambda a, b, layer: torch.cat(tensors=[a, b], dim=1),
            "gate": lambda a, b, layer: a * layer(a.mean((2, 3), keepdim=True)).sigmoid(),
            "relu": lambda a, b, layer: F.relu(a),
            "relu_": lambda a, b, layer: F.relu(input=a, inplace=True),
            "sigmoid": lambda a, b, layer: torch.sigmoid(a),
            "max": lambda a, b, layer: F.max_pool2d(a, 3, 1, 1),
            "mean": lambda a, b, layer: F.avg_pool2d(a, 3, 1, 1),
            "by size": lambda a, b, layer: a / a.size(1),
            "affine": lambda a, b, layer: a * 2 + 1,
        }
        for layer, (kind, a, b) in zip(self.layers, self.steps, strict=True):
            t.append(operations[kind](t[a], t[b], layer) if kind in operations else layer(t[a]))
        return self.last(torch.cat([F.adaptive_avg_pool2d(t[-1], 2).flatten(1), t[self.side].mean((2, 3))], 1))


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    torch.manual_seed(seed)
    checked(fill(RandomGraph(seed), 0.5, seed), 3, 8, 8)


class Sizes(nn.Module):
    """Two inputs, sizes of the picture, and a number of features read along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)
        self.tokens, self.mixed = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, height, width = x.shape
        x = F.interpolate(F.avg_pool2d(F.relu(self.conv(x)), 2), size=x.shape[2:])
        y = F.relu(self.tokens(y))
        return self.last(x) / height / width, self.mixed(y / y.size(2)) / batch


def test_sizes_are_followed_along_the_axis_that_they_are_of() -> None:
    torch.manual_seed(0)
    network = fill(Sizes(), 0.0)
    with torch.no_grad():
        network.conv.weight[:3] = 0.0
        network.tokens.weight[:3] = 0.0
    x, y = torch.randn(3, 2, 6, 6), torch.randn(3, 4, 5)
    result = compact(network, (x, y))
    for found, expected in zip(result.module(x, y), network(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    sizes = {change.name: change.after[0] for change in result.layers}
    assert sizes == {"conv": 5, "last": 2, "tokens": 8, "mixed": 3}


ZOO = {
    "resnet18": ((64, 64), 0.5),
    "mobilenet_v2": ((64, 64), 0.3),
    "squeezenet1_1": ((64, 64), 0.3),
    "shufflenet_v2_x0_5": ((32, 32), 0.6),
}
SLOW_ZOO = {
    "densenet121": ((32, 32), 0.3),
    "googlenet": ((64, 64), 0.3),
    "vgg11_bn": ((32, 32), 0.3),
    "mobilenet_v3_small": ((64, 64), 0.5),
    "efficientnet_b0": ((64, 64), 0.7),
    "convnext_tiny": ((64, 64), 0.5),
    "vit_b_16": ((224, 224), 0.6),
}


def zoo(name: str, size: tuple[int, int], left: float) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = fill(getattr(models, name)(num_classes=10, **options), 0.5)
    result = compact(network, torch.randn(2, 3, *size))
    assert difference(network, result.module, 3, 3, *size) < 1e-5
    assert result.after.macs < left * result.before.macs
    assert all(type(layer).__module__.startswith(("torch", "svdo")) for layer in result.module.modules())


@pytest.mark.parametrize("name", ZOO)
def test_torchvision(name: str) -> None:
    zoo(name, *ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ZOO)
def test_torchvision_large(name: str) -> None:
    zoo(name, *SLOW_ZOO[name])
