"""Masks, sparsity and compression against counts made by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import svdo
from svdo import LayerSparsity, UserError, counts
from svdo.extend import Method, Noise, NoisyLayer


def network() -> nn.Sequential:
    """Six dense and eighteen convolution weights, all 1 in size."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(1, 2, 3))
    net.add_module("fc", nn.Linear(2, 3))
    for p in net.parameters():
        nn.init.ones_(p)
    return net


def with_log_alpha(model: nn.Module, layer: str, values: list[float]) -> None:
    """Set log alpha of the first weights of a layer whose weights are 1 (there log sigma^2 = log alpha)."""
    with torch.no_grad():
        model.get_submodule(layer).noise.log_sigma2.view(-1)[: len(values)] = torch.tensor(values)


def test_a_weight_goes_exactly_where_log_alpha_reaches_the_threshold() -> None:
    model = svdo.convert(network(), "sparsevd")
    with_log_alpha(model, "fc", [2.99, 3.0, 3.01, 20.0, -20.0, 0.0])
    expected = torch.tensor([[True, False], [False, False], [True, True]])
    assert torch.equal(svdo.masks(model)["fc"], expected)
    assert svdo.masks(model)["fc"].dtype == torch.bool
    assert svdo.masks(model)["conv"].all()


def test_the_threshold_is_a_setting() -> None:
    model = svdo.convert(network(), "sparsevd", threshold=0.5)
    with_log_alpha(model, "fc", [0.4, 0.6, 2.0, -1.0, -1.0, -1.0])
    assert svdo.masks(model)["fc"].sum() == 4


def test_another_threshold_holds_within_its_block_even_where_that_fails() -> None:
    model = svdo.convert(network(), "sparsevd", threshold=3.5)
    with_log_alpha(model, "fc", [0.4, 0.6, 2.0, 3.4, -1.0, -1.0])

    def fail_within() -> None:
        with svdo.at_threshold(model, 0.5):
            assert svdo.masks(model)["fc"].sum() == 3
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert svdo.masks(model)["fc"].sum() == 6
    dense = svdo.convert(network(), "gaussian_b")
    with svdo.at_threshold(dense, -100.0):
        assert svdo.compression(svdo.sparsity(dense)) == 1.0


def test_every_number_is_a_threshold_in_training_too_and_nan_is_none() -> None:
    model = svdo.convert(nn.Linear(4, 4), "sparsevd").train()
    for threshold in (-math.inf, -1000.0, 1000.0, math.inf):
        with svdo.at_threshold(model, threshold):
            assert torch.isfinite(model(torch.ones(1, 4))).all()
            assert svdo.sparsity(model)[0].nonzero == (16 if threshold > 0 else 0)
    with pytest.raises(UserError, match="nan"), svdo.at_threshold(model, math.nan):
        pass


def test_sparsity_counts_weights_and_never_biases() -> None:
    model = svdo.convert(network(), "sparsevd")
    with_log_alpha(model, "fc", [5.0, 5.0, 5.0])
    with_log_alpha(model, "conv", [5.0])
    conv, fc = svdo.sparsity(model)
    assert (conv.name, conv.weights, conv.nonzero) == ("conv", 18, 17)
    assert (fc.name, fc.weights, fc.nonzero, fc.sparsity) == ("fc", 6, 3, 50.0)
    assert conv.sparsity == pytest.approx(100 / 18)
    assert svdo.compression([conv, fc]) == pytest.approx(24 / 20)


def test_a_unit_is_left_while_a_weight_leaves_or_reaches_it() -> None:
    net = nn.Sequential(nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(3, 5))
    for p in net.parameters():
        nn.init.zeros_(p)
    assert [(s.inputs, s.outputs) for s in svdo.sparsity(net)] == [(0, 0), (0, 0)]
    with torch.no_grad():
        for place in ((1, 2, 0, 1), (1, 3, 1, 1), (1, 3, 0, 0)):
            net[0].weight[place] = 0.5
        net[2].weight[[0, 4], 1] = -1.0
    assert [(s.nonzero, s.inputs, s.outputs) for s in svdo.sparsity(net)] == [(3, 2, 1), (2, 1, 2)]


@pytest.mark.parametrize("method", ["none", "vd_b", "sparsevd"])
def test_evaluation_weights_are_plain_tensors(method: str) -> None:
    weights = counts.evaluation_weights(svdo.convert(network(), method))
    assert list(weights) == ["conv", "fc"]
    assert not any(weight.requires_grad for weight in weights.values())


def test_plain_layers_count_too_and_have_no_mask() -> None:
    model = svdo.convert(network(), "sparsevd", exclude=["conv"])
    with_log_alpha(model, "fc", [5.0])
    assert list(svdo.masks(model)) == ["fc"]
    assert [(s.name, s.nonzero) for s in svdo.sparsity(model)] == [("conv", 18), ("fc", 5)]


def test_a_network_without_noise_is_dense() -> None:
    assert svdo.masks(network()) == {}
    assert svdo.compression(svdo.sparsity(network())) == 1.0


def test_a_weight_that_is_zero_is_not_counted_as_left() -> None:
    net = network()
    with torch.no_grad():
        net.fc.weight[0] = 0.0
    assert svdo.sparsity(net)[1].nonzero == 4
    assert svdo.sparsity(svdo.convert(net, "sparsevd"))[1].nonzero == 4


def test_methods_without_a_threshold_keep_every_weight() -> None:
    model = svdo.convert(network(), "vd_b")
    assert all(mask.all() for mask in svdo.masks(model).values())
    assert {name: mask.shape for name, mask in svdo.masks(model).items()} == {"conv": (2, 1, 3, 3), "fc": (3, 2)}
    assert svdo.compression(svdo.sparsity(model)) == 1.0


def test_compression_is_all_weights_over_those_left() -> None:
    assert svdo.compression([LayerSparsity("a", 100, 10, 5, 5), LayerSparsity("b", 300, 0, 0, 0)]) == 40.0
    assert svdo.compression([LayerSparsity("a", 100, 0, 0, 0)]) == math.inf


def test_nonzero_is_what_the_evaluated_weight_really_holds() -> None:
    model = svdo.convert(network(), "sparsevd")
    torch.manual_seed(0)
    with torch.no_grad():
        model.fc.noise.log_sigma2.normal_(3.0, 2.0)
    # The response of the layer to each unit vector is a column of the weight that evaluation uses.
    model.eval()
    columns = model.fc(torch.eye(2)) - model.fc(torch.zeros(1, 2))
    assert 0 < columns.count_nonzero() < 6
    assert svdo.sparsity(model)[1].nonzero == columns.count_nonzero()


def test_a_layer_used_twice_counts_once() -> None:
    shared = nn.Linear(4, 4)
    model = svdo.convert(nn.Sequential(shared, nn.ReLU(), shared), "sparsevd")
    assert sum(s.weights for s in svdo.sparsity(model)) == 16


def test_storage_counts_the_bits_of_gaps_and_values() -> None:
    layer = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.view(-1)[torch.tensor([4, 8, 12, 16, 20, 24, 28, 60])] = torch.tensor(
            [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -2.0, 1.0]
        )
    # Gaps: seven 4s and a 32, one bit each; values: 0.5 in one bit, the others in two. Either table has 32 bits per entry.
    gaps, values = 8 * 1 + 2 * 32, 6 * 1 + 2 * 2 + 3 * 32
    assert svdo.storage(layer) == pytest.approx(32 * 100 / (gaps + values))


def test_storage_never_exceeds_plain_pairs_and_knows_the_empty_network() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(30, 30)
    # Values that never repeat cost 32 bits each; gaps of a dense layer are all 1 but the first.
    assert svdo.storage(dense) == pytest.approx(32 * 900 / (32 * 900 + 900 + 2 * 32))
    with torch.no_grad():
        dense.weight.zero_()
    assert svdo.storage(dense) == float("inf")
    with torch.no_grad():
        dense.weight[3, 4] = 1.0
    assert svdo.storage(dense) == pytest.approx(32 * 900 / (32 + 32))


def test_huffman_codes_are_within_a_bit_of_the_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        occurrences = torch.randint(1, 1000, (17,), generator=generator).tolist()
        total = sum(occurrences)
        entropy = -sum(n * math.log2(n / total) for n in occurrences)
        assert entropy <= counts._huffman_bits(occurrences) < entropy + total


def test_a_unit_of_a_grouped_convolution_counts_in_its_own_group() -> None:
    layer = nn.Conv2d(8, 4, 3, groups=2)
    nn.init.ones_(layer.weight)
    (found,) = svdo.sparsity(layer)
    assert (found.inputs, found.outputs) == (8, 4)
    with torch.no_grad():
        layer.weight[:2, 0] = 0.0  # the first input of the first group
    (found,) = svdo.sparsity(layer)
    assert (found.inputs, found.outputs, found.nonzero) == (7, 4, 126)


def test_a_layer_without_weights_has_no_sparsity_and_one_without_a_shape_is_refused() -> None:
    assert svdo.sparsity(nn.Linear(4, 0))[0].sparsity == 0.0
    with pytest.raises(UserError, match="layer 0 has no weight yet; run a batch"):
        svdo.sparsity(nn.Sequential(nn.LazyLinear(2)))


class KeptUnits(Noise):
    """From outside: a probability to be kept per output unit; small ones remove the unit, others scale it in evaluation."""

    removed_above: ClassVar[bool] = False

    def __init__(self, layer: NoisyLayer) -> None:
        super().__init__()
        shape = (layer.theta.shape[0], 1) + (1,) * layer.spatial
        self.keep = nn.Parameter(torch.linspace(0.1, 1.0, layer.theta.shape[0]).view(shape))
        self.threshold = 0.5

    def score(self, weight: Tensor) -> Tensor:
        return self.keep


class ScaledUnits(KeptUnits):
    def evaluation_weight(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        scaled = weight * self.keep
        return scaled if mask is None else torch.where(mask, scaled, 0.0)


@dataclass
class ByUnit(Method):
    label: ClassVar[str] = "By unit"
    name: str = "by_unit"
    scaled: bool = False

    def noise(self, layer: NoisyLayer, name: str) -> Noise:
        return ScaledUnits(layer) if self.scaled else KeptUnits(layer)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_score_of_ones_own_by_unit_is_counted_and_evaluated(scaled: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10, 4))
    model = svdo.convert(net, ByUnit(scaled=scaled)).eval()
    left = (torch.linspace(0.1, 1.0, 10) > 0.5, torch.linspace(0.1, 1.0, 4) > 0.5)
    conv, fc = svdo.sparsity(model)
    assert (conv.nonzero, conv.inputs, conv.outputs) == (int(left[0].sum()) * 18, 2, int(left[0].sum()))
    assert (fc.nonzero, fc.inputs, fc.outputs) == (int(left[1].sum()) * 10, 10, int(left[1].sum()))
    assert svdo.compression(model) == (180 + 40) / (conv.nonzero + fc.nonzero)
    masks = svdo.masks(model)
    assert masks["0"].shape == (10, 2, 3, 3) and torch.equal(masks["0"].flatten(1).all(1), left[0])
    factor = model[3].noise.keep if scaled else 1.0
    expected = torch.where(left[1][:, None], net[3].weight * factor, 0.0)
    assert torch.equal(svdo.plain(model)[3].weight, expected)
    x = torch.randn(5, 2, 3, 3)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model(x), svdo.plain(model)(x))
        model.zero_grad()
        model(x).sum().backward()
        gradient = model[3].theta.grad
        assert not gradient[~left[1]].any() and gradient[left[1]].any()
        assert (model[3].noise.keep.grad is not None) == scaled
    with svdo.at_threshold(model, 0.95):
        assert svdo.sparsity(model)[1].outputs == 1
    with torch.no_grad():
        model[3].noise.keep.fill_(1.0)
        assert svdo.sparsity(model)[1].nonzero == 40
        assert torch.equal(model(x), svdo.plain(model)(x))
