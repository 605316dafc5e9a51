"""Pruning, dynamic network surgery and soft weight-sharing: what each claims, step by step and against torch.distributions."""

import itertools
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Categorical, Gamma, MixtureSameFamily, Normal

import svdo
from svdo import train
from svdo.cli.compose import compose
from svdo.errors import UserError
from svdo.math import schedule
from svdo.methods import sws
from svdo.methods.sws import OTHERS_PRIOR, ZERO_PRIOR, Mixture, SharedWeights
from svdo.train.optimizers import optimizers
from svdo.train.state import State


def layer_of(method: str, size: tuple[int, int] = (100, 200), **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return svdo.convert(nn.Linear(*size), method, **settings)


def set_weight(layer: nn.Module, values: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(values)


@pytest.mark.parametrize(("share", "steps"), list(itertools.product([0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0], [1, 2, 7, 100])))
def test_every_share_of_training_is_reached_exactly_once(share: float, steps: int) -> None:
    reached = [step for step in range(steps + 1) if schedule.reached(share, step, steps)]
    assert reached == [math.ceil(share * steps)]


# ----------------------------------------------------------------------------------------------- pruning


def test_pruning_removes_what_is_small_for_its_layer_a_little_more_each_turn() -> None:
    layer = layer_of("pruning", quality={"*": 2.0}, start=0.2, stop=0.6, rounds=4)
    set_weight(layer, 3.0 * torch.randn(200, 100))
    spread, kept = layer.weight.std(correction=0), {}
    for step in range(101):
        svdo.advance(layer, step, 100)
        kept[step] = svdo.sparsity(layer)[0].nonzero / 20_000
    assert kept[19] == 1.0
    turns = {20: 0.5, 34: 1.0, 47: 1.5, 60: 2.0}  # the step that reaches each quarter's share, and its threshold in std
    for step, threshold in turns.items():
        expected = (layer.weight.abs() >= threshold * spread).float().mean().item()
        assert kept[step] == pytest.approx(expected, abs=1e-6)
        assert expected == pytest.approx(2 * norm.sf(threshold), abs=0.015)
        assert kept[step - 1] > kept[step]
    assert kept[100] == kept[60]


@pytest.mark.parametrize(("start", "stop", "rounds"), [(0.3, 0.7, 10), (0.0, 1.0, 1), (0.5, 0.5, 4), (0.1, 0.9, 500)])
def test_the_turns_of_pruning_come_as_a_walk_through_all_of_them_says(start: float, stop: float, rounds: int) -> None:
    layer = layer_of("pruning", quality={"*": 2.0}, start=start, stop=stop, rounds=rounds)
    weight, steps = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)), 37
    kept, spread = torch.ones_like(weight, dtype=torch.bool), torch.zeros(())
    for step in range(steps + 1):
        for turn in range(1, rounds + 1):
            due = (start + (stop - start) * (turn - 1) / max(rounds - 1, 1)) * steps
            if step - 1 < due <= step:
                spread = weight.std(correction=0) if turn == 1 else spread
                kept &= weight.abs() >= 2.0 * turn / rounds * spread
        layer.noise.advance(weight, step, steps)
        assert torch.equal(layer.noise.mask(weight), kept)
        weight = weight * kept + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)) * kept
    assert 0 < kept.sum() < kept.numel()


def test_a_step_of_pruning_takes_no_longer_with_many_turns() -> None:
    layer = layer_of("pruning", rounds=10**9)
    for step in range(11):
        layer.noise.advance(layer.weight.data, step, 10)
    assert 0 < layer.noise.mask(layer.weight).sum() < layer.weight.numel()


def test_a_pruned_weight_stays_removed_and_feels_nothing() -> None:
    layer = layer_of("pruning", quality={"*": 1.0}, start=0.0, stop=0.5, rounds=2)
    svdo.advance(layer, 0, 10)
    removed = ~svdo.masks(layer)[""]
    assert removed.any()
    with torch.no_grad():
        layer.weight[removed] = 5.0
    svdo.advance(layer, 5, 10)
    assert not svdo.masks(layer)[""][removed].any()
    layer.train()(torch.randn(8, 100)).square().sum().backward()
    assert (layer.weight.grad[removed] == 0).all()
    assert layer.weight.grad.count_nonzero() == svdo.masks(layer)[""].sum()


def test_pruning_qualities_go_by_layer_and_zero_keeps_all() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50), nn.Linear(50, 50))
    model = svdo.convert(network, "pruning", quality={"*": 0.5, "1": 1.2, "2": 0.0}, rounds=1)
    for step in range(11):
        svdo.advance(model, step, 10)
    first, second, third = (layer.sparsity for layer in svdo.sparsity(model))
    assert 0 < first < second
    assert third == 0


# ----------------------------------------------------------------------------------------------- dynamic network surgery


def test_surgery_removes_splices_and_leaves_alone_what_is_in_between() -> None:
    layer = layer_of("dns", (2, 2), crispness={"*": 0.0}, start=0.0, stop=1.0, gamma=0.0)
    set_weight(layer, torch.tensor([[0.1, 0.8], [1.0, -2.1]]))  # mean |w| = 1: remove up to 0.9, splice above 1.1
    svdo.advance(layer, 0, 10)
    assert svdo.masks(layer)[""].tolist() == [[False, False], [True, True]]
    set_weight(layer, torch.tensor([[1.0, 1.2], [0.95, 0.85]]))
    svdo.advance(layer, 1, 10)
    assert svdo.masks(layer)[""].tolist() == [[False, True], [True, False]]
    set_weight(layer, torch.tensor([[1.05, 0.95], [-0.9, -1.15]]))
    svdo.advance(layer, 2, 10)
    assert svdo.masks(layer)[""].tolist() == [[False, True], [False, True]]


def test_surgery_sets_its_threshold_once_from_mean_and_spread() -> None:
    layer = layer_of("dns", crispness={"*": 1.5}, start=0.5, stop=0.9, gamma=0.0)
    for step in range(5):
        svdo.advance(layer, step, 10)
        assert svdo.masks(layer)[""].all()
    size = layer.weight.detach().abs()
    threshold = size.mean() + 1.5 * size.std(correction=0)
    svdo.advance(layer, 5, 10)
    assert torch.equal(svdo.masks(layer)[""], size > 0.9 * threshold)
    set_weight(layer, 10 * layer.weight)
    svdo.advance(layer, 6, 10)
    survived = (size > 0.9 * threshold) & (10 * size > 0.9 * threshold)
    assert torch.equal(svdo.masks(layer)[""], survived | (10 * size > 1.1 * threshold))
    before = svdo.masks(layer)[""].clone()
    set_weight(layer, 0 * layer.weight)
    for step in (9, 10):
        svdo.advance(layer, step, 10)
    assert torch.equal(svdo.masks(layer)[""], before)


def test_the_gradient_by_the_masked_weights_moves_all_of_them() -> None:
    layer = layer_of("dns", crispness={"*": 1.0}, start=0.0)
    svdo.advance(layer, 0, 10)
    mask, x = svdo.masks(layer)[""], torch.randn(8, 100)
    assert 0 < mask.sum() < mask.numel()
    masked = (layer.weight.detach() * mask).requires_grad_()
    expected = nn.functional.linear(x, masked, layer.bias)
    output = layer.train()(x)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, masked.grad)
    assert (layer.weight.grad[~mask] != 0).all()


def test_surgery_grows_rarer_as_it_should() -> None:
    layer = layer_of("dns", (2, 1), crispness={"*": 0.0}, start=0.0, stop=1.0, gamma=0.01, power=1.0)
    changes, steps = 0, 4000
    for step in range(steps):
        layer.noise.removed.zero_()
        svdo.advance(layer, step, steps)
        changes += int(not svdo.masks(layer)[""].all())
    chances = [1 / (1 + 0.01 * step) for step in range(steps)]
    error = math.sqrt(sum(p * (1 - p) for p in chances))
    assert changes == pytest.approx(sum(chances), abs=5 * error)


# ----------------------------------------------------------------------------------------------- soft weight-sharing


def scattered(components: int = 4) -> Mixture:
    (noise,) = [layer.noise for layer in [svdo.convert(nn.Linear(2, 2), "sws", components=components)]]
    assert isinstance(noise, SharedWeights)
    torch.manual_seed(1)
    with torch.no_grad():
        noise.mixture.means.add_(0.1 * torch.randn(components))
        noise.mixture.log_precisions.add_(torch.rand(components + 1))
        noise.mixture.log_shares.copy_(torch.randn(components))
    return noise.mixture.double()


def test_the_penalty_is_that_of_the_mixture_and_its_hyper_prior() -> None:
    mixture, weight = scattered(), 0.5 * torch.randn(30, 7, dtype=torch.float64)
    shares = torch.cat([torch.tensor([0.99]), 0.01 * torch.softmax(mixture.log_shares, 0)])
    means, spread = torch.cat([torch.zeros(1), mixture.means]), (-0.5 * mixture.log_precisions).exp()
    oracle = MixtureSameFamily(Categorical(shares), Normal(means, spread))
    ours = mixture.log_likelihood(weight)
    torch.testing.assert_close(ours, oracle.log_prob(weight.flatten()).sum(), rtol=1e-6, atol=1e-6)

    def gamma(precisions: Tensor) -> Tensor:
        a, b = torch.tensor([ZERO_PRIOR] + [OTHERS_PRIOR] * 4, dtype=torch.float64).T
        return -Gamma(a, b).log_prob(precisions).sum()

    mode = torch.tensor([(a - 1) / b for a, b in [ZERO_PRIOR] + [OTHERS_PRIOR] * 4], dtype=torch.float64)
    expected = gamma(mixture.log_precisions.exp()) - gamma(mode)
    torch.testing.assert_close(mixture.hyper_penalty(), expected, rtol=1e-6, atol=1e-6)
    assert mixture.hyper_penalty() > 0


def test_the_penalty_in_pieces_has_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sws._LogLikelihood, "PIECE", 8)
    mixture, weight = scattered(), (0.5 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_()
    parameters = [weight, *mixture.parameters()]
    log_shares, means, log_precisions = mixture.components()
    normal = Normal(means, (-0.5 * log_precisions).exp())
    whole = torch.logsumexp(log_shares + normal.log_prob(weight.reshape(-1, 1)), 1).sum()
    expected = torch.autograd.grad(3.0 * whole, parameters)
    found = torch.autograd.grad(3.0 * mixture.log_likelihood(weight), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_one_mixture_serves_all_layers_and_its_hyper_prior_counts_once() -> None:
    torch.manual_seed(0)
    model = svdo.convert(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), "sws", tau=0.01)
    assert model[0].noise.mixture is model[1].noise.mixture
    mixture = model[0].noise.mixture
    everything = torch.cat([model[0].weight.flatten(), model[1].weight.flatten()])
    expected = 0.01 * (mixture.hyper_penalty() - mixture.log_likelihood(everything))
    torch.testing.assert_close(svdo.kl(model), expected)


def test_after_the_last_step_weights_share_values_and_most_are_zero() -> None:
    torch.manual_seed(0)
    model = svdo.convert(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), "sws", components=5, span=0.5, width=0.05)
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(
                torch.where(torch.rand(20, 20) < 0.9, 0.02 * torch.randn(20, 20), 0.5 * torch.sign(layer.weight))
            )
    before = [layer.weight.detach().clone() for layer in model]
    svdo.advance(model, 9, 10)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True))
    assert svdo.compression(svdo.sparsity(model)) == 1.0
    svdo.advance(model, 10, 10)
    values = torch.cat([layer.weight.flatten() for layer in model]).unique()
    assert len(values) <= 6
    assert 0.0 in values
    assert all((layer.weight - old).abs().max() < 0.15 for layer, old in zip(model, before, strict=True))
    assert 8 < svdo.compression(svdo.sparsity(model)) < 13


def test_components_that_became_one_are_merged_by_their_shares() -> None:
    mixture = scattered(3)
    with torch.no_grad():
        mixture.means.copy_(torch.tensor([0.4, 0.4 + 1e-9, -0.3]))
        mixture.log_precisions.copy_(torch.tensor([8.0, 6.0, 6.0, 6.0]))
    merged = mixture.merged_means()
    assert merged[0] == 0.0
    assert merged[1] == merged[2] == pytest.approx(0.4, abs=1e-8)
    assert merged[3] == pytest.approx(-0.3)
    with torch.no_grad():
        mixture.means.fill_(0.0)
        mixture.log_precisions.fill_(6.0)
    assert mixture.merged_means().tolist() == [0.0] * 4


def test_the_mixture_learns_at_its_own_rates() -> None:
    model = svdo.convert(nn.Linear(4, 4), "sws")
    (optimizer,) = optimizers(model, compose(["model=lenet300", "train.lr=5e-4"]).train)
    rates = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    mixture = model.noise.mixture  # type: ignore[union-attr]
    scales = [rates[id(p)] for p in (model.weight, mixture.means, mixture.log_precisions, mixture.log_shares)]  # type: ignore[union-attr]
    assert scales == [1.0, 0.2, 6.0, 6.0]


# ----------------------------------------------------------------------------------------------- all three, in a run

SHORT = [*SMALL, "train.epochs=4", "dataset.subset=1000", "train.kl_start=0.3", "train.kl_full=0.3"]
SET_RATES = State.set_rates
VARYING = ("seconds", "core_seconds", "provenance", "files", "sha256")  # the last two follow from the first
SETTINGS = {
    "pruning": ["method.quality={fc*:1.0}", "method.rounds=3"],
    "dns": ["method.crispness={fc*:0.5}"],
    "sws": ["method.tau=1e-4", "method.width=0.02", "method.span=0.5"],
}


@pytest.mark.parametrize("method", SETTINGS)
def test_a_baseline_learns_compresses_and_resumes_exactly(tmp_path: Path, method: str) -> None:
    overrides = [*SHORT, f"method={method}", *SETTINGS[method]]
    records = []
    for folder, stops in (("whole", []), ("broken", [0.4, 0.75])):
        config = compose([*overrides, f"results_dir={tmp_path / folder}"])
        pending = [int(share * 4 * 50) for share in stops]

        def interrupt(self: State, lr: float, noise_lr: float, pending: list[int] = pending) -> None:
            if pending and self.progress.epoch * 50 + self.progress.step == pending[0]:
                pending.pop(0)
                signal.raise_signal(signal.SIGINT)
            SET_RATES(self, lr, noise_lr)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(State, "set_rates", interrupt)
            for _ in stops:
                with pytest.raises(train.Interrupted):
                    train.execute(config)
            _, record = train.execute(config)
        records.append({key: value for key, value in record.items() if key not in VARYING})
    assert records[0] == records[1]
    assert records[0]["test"]["error"] < 60
    assert records[0]["compression"] > 1.2
    assert "test_sampled" not in records[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.start=0.9", "they must lie in"),
        ("method.rounds=0", "at least 1"),
        ("method.quality={fc1:-1}", "must not be negative"),
    ],
)
def test_pruning_settings_that_make_no_sense_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["model=lenet300", "method=pruning", override])


@pytest.mark.parametrize(
    "override", ["method.components=0", "method.zero_share=1", "method.tau=0", "method.span=-1", "method.width=0"]
)
def test_sws_settings_that_make_no_mixture_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        compose(["model=lenet300", "method=sws", override])


@pytest.mark.parametrize("override", ["method.stop=0.1", "method.gamma=-1", "method.power=-1"])
def test_surgery_settings_that_make_no_sense_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="method"):
        compose(["model=lenet300", "method=dns", override])


def test_the_mixture_is_computed_in_float32_under_autocast_too() -> None:
    model = svdo.convert(nn.Linear(30, 10), "sws")
    with torch.autocast("cpu", torch.bfloat16):
        inside = svdo.kl(model)
    torch.testing.assert_close(inside, svdo.kl(model))
