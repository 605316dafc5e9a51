"""Masks, sparsity and compression against counts made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import svdo
from svdo import LayerSparsity, UserError, counts


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
