"""Measures of quality by hand and by an independent numpy implementation; sampled prediction against quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import svdo
from svdo.batch_norm import reestimate_batch_norm
from svdo.data import ImageSplit, Normalizer
from svdo.errors import UserError
from svdo.tasks.classification import auroc, entropy, evaluate, log_probabilities, metrics


def split_of(x: torch.Tensor, labels: torch.Tensor) -> ImageSplit:
    """A split of ready float images (N, H, W, C)."""
    return ImageSplit(x, labels, Normalizer(torch.ones(()), torch.zeros(())))


def random_predictions(n: int = 3000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 2.0 * torch.randn(n, classes, generator=generator)
    return logits.log_softmax(1), torch.randint(classes, (n,), generator=generator)


def test_metrics_of_three_predictions_computed_by_hand() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.52, 0.28, 0.2]]).log()
    got = metrics(log_probs, torch.tensor([0, 1, 0]))
    assert got["error"] == pytest.approx(100 / 3)
    assert got["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.52)) / 3, rel=1e-6)
    brier = (0.3**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.7**2 + 0.6**2) + (0.48**2 + 0.28**2 + 0.2**2)
    assert got["brier"] == pytest.approx(brier / 3, rel=1e-6)
    # Fifteen bins put the three confidences into three different bins.
    assert got["ece"] == pytest.approx(100 * (0.3 + 0.6 + 0.48) / 3, rel=1e-5)


def test_metrics_agree_with_an_independent_numpy_implementation() -> None:
    log_probs, _ = random_predictions()
    # Labels that the predictions describe well: gaps of both signs, so that the number of bins matters.
    labels = torch.multinomial(log_probs.exp(), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    p, y = log_probs.double().exp().numpy(), labels.numpy()
    confidence, correct = p.max(1), p.argmax(1) == y
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    got = metrics(log_probs, labels)
    assert got["error"] == pytest.approx(100 * (p.argmax(1) != y).mean(), abs=1e-9)
    assert got["nll"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-6)
    assert got["brier"] == pytest.approx(((p - np.eye(5)[y]) ** 2).sum(1).mean(), rel=1e-6)
    assert got["ece"] == pytest.approx(100 * ece, rel=1e-4)


def test_gaps_of_opposite_sign_cancel_inside_a_bin_but_not_between_bins() -> None:
    # Both in the bin (0.6, 0.6667]: confidence 0.65 twice, one hit: |0.5 - 0.65|.
    same = torch.tensor([[0.65, 0.35], [0.65, 0.35]]).log()
    assert metrics(same, torch.tensor([0, 1]))["ece"] == pytest.approx(15.0, rel=1e-4)
    other = torch.tensor([[0.65, 0.35], [0.95, 0.05]]).log()
    assert metrics(other, torch.tensor([0, 1]))["ece"] == pytest.approx(100 * (0.35 + 0.95) / 2, rel=1e-4)


def test_a_certain_and_right_prediction_is_perfect() -> None:
    log_probs = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])
    assert metrics(log_probs, torch.tensor([0, 1])) == {"error": 0.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}


def test_a_certain_and_wrong_prediction_is_the_worst() -> None:
    got = metrics(torch.tensor([[0.0, -200.0]]), torch.tensor([1]))
    assert got == pytest.approx({"error": 100.0, "nll": 200.0, "ece": 100.0, "brier": 2.0})


def test_calibrated_labels_have_small_calibration_error_and_shifted_ones_large() -> None:
    log_probs, _ = random_predictions(20_000)
    labels = torch.multinomial(log_probs.exp(), 1, generator=torch.Generator().manual_seed(2))[:, 0]
    # Fifteen bins of some 1300: the expected absolute gap of a calibrated model is about 1 percent.
    assert metrics(log_probs, labels)["ece"] < 2.0
    overconfident = (3 * log_probs).log_softmax(1)
    assert metrics(overconfident, labels)["ece"] > 10.0


def test_prediction_is_the_softmax_of_every_image_in_order_whatever_the_chunks() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(1203, 2, 2, 1), torch.randint(3, (1203,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    got = log_probabilities(model, split_of(x, labels))
    assert got.shape == (1203, 3)
    logits = x.reshape(1203, 4) @ model[1].weight.T + model[1].bias
    torch.testing.assert_close(got.exp(), logits.exp() / logits.exp().sum(1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert not got.requires_grad


def test_evaluation_is_deterministic_uses_the_thresholded_mean_and_keeps_the_mode() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(50, 2, 2, 1), torch.randint(3, (50,))
    model = svdo.convert(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "sparsevd").train()
    with torch.no_grad():
        model[1].noise.log_sigma2[0] = 10.0
    first, second = (log_probabilities(model, split_of(x, labels)) for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    kept = model[1].weight.detach().clone()
    kept[0] = 0.0
    expected = (x.reshape(50, 4) @ kept.T + model[1].bias).log_softmax(1)
    torch.testing.assert_close(first, expected)


def test_sampled_prediction_converges_to_the_expected_probability() -> None:
    # Two classes and one dense layer: the logit difference is a normal, so the mean probability is a 1-d integral.
    torch.manual_seed(0)
    x, labels = torch.randn(40, 2, 2, 1), torch.randint(2, (40,))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.normal_(0.0, 1.5)
    model = svdo.convert(net, "gaussian_b", rates={"*": 0.5}).eval()
    samples = 4000
    got = log_probabilities(model, split_of(x, labels), samples=samples).double().exp()

    flat = x.reshape(40, 4).double().numpy()
    w, b = net[1].weight.detach().double().numpy(), net[1].bias.detach().double().numpy()
    mean = flat @ (w[1] - w[0]) + b[1] - b[0]
    deviation = np.sqrt((flat**2) @ (w[0] ** 2 + w[1] ** 2))  # alpha = 1 at p = 1/2
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(80)
    sigmoid = 1 / (1 + np.exp(-(mean[:, None] + deviation[:, None] * nodes)))
    probability = sigmoid @ node_weights / math.sqrt(2 * math.pi)
    variance = (sigmoid - probability[:, None]) ** 2 @ node_weights / math.sqrt(2 * math.pi)
    tolerance = 5 * np.sqrt(variance / samples) + 1e-4
    assert (np.abs(got[:, 1].numpy() - probability) < tolerance).all()
    # The average over noise is not the prediction of the mean network.
    plain = log_probabilities(model, split_of(x, labels)).double().exp()
    assert (np.abs(plain[:, 1].numpy() - probability) > tolerance).mean() > 0.5
    torch.testing.assert_close(got.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-5)


def test_sampled_prediction_leaves_batch_norm_and_the_mode_alone_and_switches_noise_off_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model = svdo.convert(net, "gaussian_b").train()
    before = model[2].running_mean.clone()
    split = split_of(torch.randn(30, 2, 2, 1), torch.randint(3, (30,)))
    assert not torch.equal(log_probabilities(model, split, 2), log_probabilities(model, split, 2))
    assert torch.equal(model[2].running_mean, before)
    assert model.training
    assert torch.equal(log_probabilities(model, split), log_probabilities(model, split))


def test_the_mode_of_every_submodule_is_kept() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    net[1].eval()  # frozen statistics
    split = split_of(torch.randn(10, 2, 2, 1), torch.randint(3, (10,)))
    log_probabilities(net, split)
    assert [net.training, net[1].training, net[2].training] == [True, False, True]


def test_evaluate_is_the_metrics_of_the_predictions_on_the_split() -> None:
    # A network that puts each image's own first pixel on class 1.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    x = torch.tensor([2.0, -2.0, 2.0, -2.0]).view(4, 1, 1, 1)
    got = evaluate(model, split_of(x, torch.tensor([1, 0, 1, 1])))
    assert got["error"] == pytest.approx(25.0)
    right, wrong = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    assert got["nll"] == pytest.approx(-(3 * math.log(right) + math.log(wrong)) / 4, rel=1e-5)
    assert got["brier"] == pytest.approx((3 * 2 * wrong**2 + 2 * right**2) / 4, rel=1e-5)
    assert got["ece"] == pytest.approx(100 * abs(0.75 - right), rel=1e-4)


def test_batch_norm_reestimated_has_the_statistics_of_the_thresholded_network_and_keeps_modes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    model = svdo.convert(net, "sparsevd", log_sigma2=-2.0)  # much noise, and weights removed
    assert svdo.compression(svdo.sparsity(model)) > 1.2
    images = torch.randn(1100, 4, 4, 2)  # two whole chunks and a rest, which does not count
    batches = [chunk.permute(0, 3, 1, 2) for chunk in images.split(500)]
    model.train()
    model[4].eval()
    assert reestimate_batch_norm(model, batches)
    assert model.training
    assert model[1].training
    assert not model[4].training
    norm = model[1]
    assert norm.momentum == 0.3
    weight = model[0].weight * svdo.masks(model)["0"]
    activations = [nn.functional.conv2d(batch, weight, model[0].bias) for batch in batches[:2]]
    means, variances = (
        torch.stack([moment(a.transpose(0, 1).flatten(1), 1) for a in activations]).mean(0)
        for moment in (torch.mean, torch.var)
    )
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
    assert not reestimate_batch_norm(svdo.convert(nn.Linear(3, 2), "sparsevd"), batches)


def test_batch_norm_keeps_its_statistics_where_they_cannot_be_estimated() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2, momentum=0.2))
    model(torch.randn(4, 1, 2, 2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="no batches"):
        reestimate_batch_norm(model, iter([]))
    with pytest.raises(RuntimeError, match="channels"):
        reestimate_batch_norm(model, [torch.randn(4, 1, 2, 2, 2), torch.randn(4, 3, 2, 2, 2)])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model[1].momentum == 0.2
    assert reestimate_batch_norm(model, [torch.randn(4, 1, 2, 2, 2)])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, 20, (n,), generator=generator).float() for n in (70, 50))
    pairs = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside).double()
    assert auroc(inside, outside) == pytest.approx(100 * pairs.mean().item())
    assert auroc(inside, inside) == pytest.approx(50.0)
    assert auroc(inside, inside + 100) == 100.0


def test_entropy_is_log_k_for_a_uniform_and_0_for_a_certain_prediction() -> None:
    log_probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0 - 3e-8, 1e-8, 1e-8, 1e-8]]).log()
    assert entropy(log_probs).tolist() == pytest.approx([math.log(4), 0.0], abs=1e-5)


def test_a_batch_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norms = nn.Linear(4, 4), nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

        def forward(self, x: torch.Tensor, domain: int = 0) -> torch.Tensor:
            return self.norms[domain](self.linear(x))

    model = svdo.convert(Domains(), "sparsevd").train()
    for domain in (0, 1):
        model(torch.randn(32, 4) + 5.0, domain)
    before = [norm.running_mean.clone() for norm in model.norms]
    assert reestimate_batch_norm(model, [torch.randn(32, 4) - 5.0])
    assert not torch.allclose(model.norms[0].running_mean, before[0])
    assert torch.equal(model.norms[1].running_mean, before[1]) and model.norms[1].num_batches_tracked == 1


def test_batch_norm_asks_for_batches_of_inputs() -> None:
    model = svdo.convert(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "sparsevd")
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 4), torch.zeros(4)), batch_size=2)
    with pytest.raises(UserError, match=r"a batch is a list; give the inputs alone: \(x for x, _ in loader\)"):
        reestimate_batch_norm(model, pairs)
    with pytest.raises(UserError, match="batches is one tensor; give a list of batches"):
        reestimate_batch_norm(model, torch.randn(4, 4))  # type: ignore[arg-type]
