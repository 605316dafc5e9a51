"""Three ways to draw noise: equal in distribution for one example, in the order of the 2015 paper for gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import svdo
from svdo.data import ImageSplit, Normalizer
from svdo.report.measures.estimators import ESTIMATORS, GROUPS, drawn, gradient_variance, mean_and_error


def model_of(*sizes: int, alpha: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return svdo.convert(nn.Sequential(*layers[:-1]), "vd_b", rates={"*": alpha / (1 + alpha)})


def split_of(n: int, inputs: int, classes: int) -> ImageSplit:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, inputs, 1, generator=generator)
    return ImageSplit(images, torch.randint(classes, (n,), generator=generator), Normalizer(torch.ones(()), torch.zeros(())))


@pytest.mark.parametrize("estimator", ["local", "separate", "single"])
def test_every_estimator_gives_one_example_the_same_mean_and_variance(estimator: str) -> None:
    model = model_of(6, 4)
    x = torch.randn(1, 6)
    layer = model[0]
    mean, variance = layer.noise.posterior(layer.weight)
    with drawn(model, estimator):
        draws = torch.cat([model(x) for _ in range(20000)])
    expected = x.square() @ variance.T
    error_of_the_mean = (expected.max() / 20000).sqrt().item()
    torch.testing.assert_close(draws.mean(0), (x @ mean.T + layer.bias)[0], atol=4 * error_of_the_mean, rtol=0)
    torch.testing.assert_close(draws.var(0), expected[0], rtol=0.06, atol=0)
    with drawn(model, "none"):
        torch.testing.assert_close(model(x), x @ mean.T + layer.bias)


@pytest.mark.parametrize("estimator", ["local", "separate", "single"])
def test_an_alpha_above_1_counts_as_1_in_every_estimator(estimator: str) -> None:
    model, x = model_of(6, 4), torch.randn(1, 6)
    with torch.no_grad():
        model[0].noise.raw_log_alpha.fill_(4.0)
    with drawn(model, estimator):
        draws = torch.cat([model(x) for _ in range(20000)])
    bounded = (x.square() @ model[0].weight.square().T)[0]
    torch.testing.assert_close(draws.var(0), bounded, rtol=0.06, atol=0)


def test_examples_share_a_single_draw_and_no_other() -> None:
    model, x = model_of(6, 4), torch.randn(1, 6).expand(500, -1)
    for estimator, shared in (("single", True), ("separate", False), ("local", False)):
        with drawn(model, estimator):
            output = model(x)
        assert torch.allclose(output, output[0], atol=1e-6) == shared
    assert "forward" not in vars(model[0])


def test_local_reparameterization_has_the_smallest_gradient_variance_and_a_single_draw_the_largest() -> None:
    model, split = model_of(20, 30, 30, 5, alpha=0.9), split_of(2000, 20, 5)
    split.images.add_(1.0)  # as images have it, something is common to all examples, whose gradients a draw then moves alike
    found = {name: gradient_variance(model, split, name, ["0", "4"], batches=150, size=100) for name in ESTIMATORS}
    for layer in ("0", "4"):
        values = [mean_and_error(found[name][layer]) for name in ("none", "local", "separate", "single")]
        assert all(larger - smaller > 3 * math.hypot(a, b) for (smaller, a), (larger, b) in pairwise(values)), values


def test_without_noise_the_variance_is_that_of_drawing_examples() -> None:
    model, split = model_of(7, 3), split_of(400, 7, 3)
    x, y = split.images.flatten(1), split.labels
    with drawn(model, "none"):
        logits = model(x)
    errors = logits.softmax(1) - nn.functional.one_hot(y, 3)
    each = (errors[:, :, None] * x[:, None, :]).detach().double()  # per-example gradients by the weight
    # N/M times a sum of M of N examples drawn without replacement.
    n, m = 400, 50
    expected = (n**2 / m * each.var(0) * (1 - m / n)).mean().item()
    found = mean_and_error(gradient_variance(model, split, "none", ["0"], batches=800, size=m)["0"])
    assert found[0] == pytest.approx(expected, abs=4 * found[1])
    assert found[1] < 0.05 * expected


def test_a_split_smaller_than_the_minibatch_is_taken_whole() -> None:
    model, split = model_of(5, 4, alpha=0.5), split_of(30, 5, 4)
    assert gradient_variance(model, split, "none", ["0"], batches=3, size=100)["0"][0] == pytest.approx(0.0, abs=1e-6)


def test_a_separate_draw_for_each_example_has_the_variance_of_whole_minibatches() -> None:
    model, split = model_of(12, 10, 4, alpha=0.9), split_of(2000, 12, 4)
    found, error = mean_and_error(gradient_variance(model, split, "separate", ["0"], batches=200, size=40)["0"])
    weight, gradients = model.get_parameter("0.weight"), []
    with drawn(model, "separate"):
        for number, (x, y) in enumerate(batch for epoch in range(20) for batch in split.batches(40, 1, epoch)):
            torch.manual_seed(10_000 + number)
            loss = nn.functional.cross_entropy(model(x.flatten(1)), y, reduction="sum") * (2000 / 40)
            gradients.append(torch.autograd.grad(loss, weight)[0].double())
    whole = torch.stack(gradients)
    parts = torch.stack([part.var(0).mean() for part in whole.split(100)])
    whole_error = (parts.std() / len(parts) ** 0.5).item()
    # Whole minibatches are drawn without replacement: up to M / N = 2 % less of what the examples contribute.
    assert whole.var(0).mean().item() == pytest.approx(found, abs=3 * (error + whole_error) + 0.02 * found)
    assert error + whole_error < 0.05 * found


def test_the_standard_error_is_the_spread_of_repeated_estimates() -> None:
    model, split = model_of(4, 3), split_of(20 * 3000, 4, 3)
    pairs = []
    for images, labels in zip(split.images.split(3000), split.labels.split(3000), strict=True):
        part = ImageSplit(images, labels, split.normalizer)
        pairs.append(mean_and_error(gradient_variance(model, part, "none", ["0"], batches=60, size=50)["0"]))
    values, errors = torch.tensor(pairs).unbind(1)
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.4)


def test_every_minibatch_counts_and_all_calls_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = model_of(5, 4), split_of(400, 5, 4)
    calls = []
    monkeypatch.setattr(model, "forward", lambda x: calls.append(x) or model[0](x))
    found = gradient_variance(model, split, "local", ["0"], batches=50, size=40)["0"]
    assert (len(found), len(calls)) == (GROUPS, 50)
    assert found == gradient_variance(model, split, "local", ["0"], batches=50, size=40)["0"]
    assert all(map(torch.equal, calls[:50], calls[50:]))
