"""Conversion of ordinary networks: what is kept, what is refused, and the two functions beside it."""

from __future__ import annotations

import copy
import io
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svdo
from svdo.errors import UserError
from svdo.layers import NoisyConv2d, NoisyLinear, noisy_layers
from svdo.methods import METHODS
from svdo.methods.sparsevd import SparseVD


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def kinds(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module.children()]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10)


def test_resnet18_converts_and_trains_one_step(resnet: nn.Module) -> None:
    model = svdo.convert(resnet, "sparsevd").train()
    plain = {name for name, m in resnet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {name for name, _ in noisy_layers(model)} == plain
    assert len(plain) == 21
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    loss = F.cross_entropy(model(x), y) + svdo.kl(model) / 50_000
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert not torch.equal(p, before[name]), name


def test_resnet18_keeps_its_state_dict_and_the_original_stays_as_it_was(resnet: nn.Module) -> None:
    state, text = copy.deepcopy(resnet.state_dict()), repr(resnet)
    model = svdo.convert(resnet, "sparsevd")
    converted = model.state_dict()
    assert set(state) <= set(converted)
    assert all(".noise." in key for key in set(converted) - set(state))
    assert all(torch.equal(converted[key], value) for key, value in state.items())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert repr(resnet) == text
    assert all(torch.equal(resnet.state_dict()[key], value) for key, value in state.items())


def test_the_plain_state_dict_loads_into_the_converted_network() -> None:
    net, model = small(), svdo.convert(small(), "sparsevd")
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    missing, unexpected = model.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected
    assert all(".noise." in key for key in missing)
    torch.testing.assert_close(model(images()), net(images()))


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_conversion_computes_in_evaluation_what_the_network_did(name: str) -> None:
    net = small()
    with torch.no_grad():  # weights well above any start of the noise, so that none is removed
        net[0].weight.copy_(net[0].weight.sign() * (0.2 + net[0].weight.abs()))
        net[4].weight.copy_(net[4].weight.sign() * (0.2 + net[4].weight.abs()))
    torch.testing.assert_close(svdo.convert(net, name)(images()), net(images()))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_is_kept(training: bool) -> None:
    net = small().train(training)
    net[1].train(not training)
    model = svdo.convert(net, "sparsevd")
    assert [m.training for m in model.children()] == [m.training for m in net.children()]
    assert model.training is training
    assert model[4].noise.training is training


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_a_training_pass_runs_in_it(name: str, dtype: torch.dtype) -> None:
    model = svdo.convert(small().to(dtype), name).train()
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(images().to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", METHODS)
def test_a_converted_network_lives_where_the_network_lived(name: str) -> None:
    model = svdo.convert(small().to("meta"), name)
    assert {t.device.type for key, t in model.state_dict().items() if not key.endswith("_extra_state")} == {"meta"}


def test_hooks_are_kept_on_the_copy_and_separate_from_the_original() -> None:
    net, calls = small(), []
    net[4].register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    net[0].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    model = svdo.convert(net, "sparsevd")
    model(images())
    assert calls == ["pre", "NoisyLinear"]
    model[4].register_forward_hook(lambda module, args, output: calls.append("new"))
    calls.clear()
    net(images())
    assert calls == ["pre", "Linear"]


def test_frozen_parameters_stay_frozen() -> None:
    net = small()
    net[0].weight.requires_grad_(False)
    model = svdo.convert(net, "sparsevd")
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad


def test_conversion_leaves_the_global_generator_alone() -> None:
    net = small()
    before = torch.get_rng_state()
    for name in METHODS:
        svdo.convert(net, name)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_layer_has_its_own_noise() -> None:
    model = svdo.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "sparsevd")
    with torch.no_grad():
        model[0].noise.log_sigma2.zero_()
    assert (model[1].noise.log_sigma2 == -10).all()


class TwoNames(nn.Module):
    """One layer under two names, inside two different parents."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4))
        self.second = nn.Sequential(self.first[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_layer_shared_by_two_parents_stays_one_layer() -> None:
    model = svdo.convert(TwoNames(), "sparsevd")
    assert type(model.first[0]) is NoisyLinear
    assert model.second[0] is model.first[0]


def test_a_layer_used_twice_by_one_parent_stays_one_layer() -> None:
    layer = nn.Linear(4, 4)
    model = svdo.convert(nn.Sequential(layer, nn.ReLU(), layer), "sparsevd")
    assert kinds(model) == ["NoisyLinear", "ReLU"]
    assert model[2] is model[0]


def test_the_kl_of_a_shared_layer_counts_once() -> None:
    torch.manual_seed(0)
    net = TwoNames()
    single = svdo.convert(nn.Sequential(net.first[0]), "sparsevd")
    assert svdo.kl(svdo.convert(net, "sparsevd")).item() == pytest.approx(svdo.kl(single).item())


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    model = svdo.convert(net, "sparsevd")
    assert model[1].weight is model[0].weight


def test_a_transformer_evaluates_through_its_noisy_layers() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = svdo.convert(nn.TransformerEncoder(block, 2), "sparsevd", exclude=["*self_attn*"], log_sigma2=4.0).eval()
    assert svdo.compression(svdo.sparsity(model)) > 2.0  # every weight of the feed-forward layers is removed
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        silent = model(x)
        for layer in model.layers:  # type: ignore[union-attr]
            layer.linear1.theta.zero_()
            layer.linear2.theta.zero_()
        assert torch.allclose(model(x), silent)
        with svdo.sampling(model):
            assert not torch.allclose(model(x), silent)


def test_a_bare_layer_converts() -> None:
    for layer, kind in ((nn.Linear(3, 2), NoisyLinear), (nn.Conv2d(1, 2, 3), NoisyConv2d)):
        model = svdo.convert(layer, "sparsevd")
        assert type(model) is kind
        assert model is not layer
        assert torch.equal(model.weight, layer.weight)
        assert isinstance(model, type(layer))


def test_nested_sequential_converts_at_every_depth() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ModuleList([nn.Linear(2, 2)])))
    assert [name for name, _ in noisy_layers(svdo.convert(net, "sparsevd"))] == ["0", "1.0.0", "1.1.0"]


def test_include_and_exclude_choose_layers_by_name_and_exclude_wins() -> None:
    assert kinds(svdo.convert(small(), "sparsevd", include=["4"]))[::4] == ["Conv2d", "NoisyLinear"]
    assert kinds(svdo.convert(small(), "sparsevd", exclude=["4"]))[::4] == ["NoisyConv2d", "Linear"]
    assert kinds(svdo.convert(small(), "sparsevd", include=["[04]"], exclude=["0"]))[::4] == ["Conv2d", "NoisyLinear"]


def test_a_pattern_may_name_the_module_around_layers() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert [name for name, _ in noisy_layers(svdo.convert(net, "sparsevd", exclude=["0"]))] == ["1"]
    assert [name for name, _ in noisy_layers(svdo.convert(net, "sparsevd", include=["0"], exclude=["0.2"]))] == ["0.0"]


def test_a_layer_goes_by_each_of_its_names() -> None:
    assert kinds(svdo.convert(TwoNames(), "sparsevd", include=["second"]).first) == ["NoisyLinear"]
    with pytest.raises(UserError, match="include and exclude"):
        svdo.convert(TwoNames(), "sparsevd", exclude=["second.0"])


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_no_layer_is_refused_with_the_names(key: str) -> None:
    with pytest.raises(UserError) as error:
        svdo.convert(small(), "sparsevd", **{key: ["*", "haed"]})
    assert f"{key}=haed" in str(error.value)
    assert "0, 4" in str(error.value)


class Listed(nn.Module):
    """Calls its layers through a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.order = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


def test_whatever_refers_to_a_layer_refers_to_the_noisy_one_and_then_to_the_plain_one() -> None:
    x = torch.randn(2, 4)
    model = svdo.convert(Listed().train(), "sparsevd", log_sigma2=9.0)
    assert not torch.equal(model(x), model(x))
    assert all(first is second for first, second in zip(model.order, (model.a, model.b), strict=True))
    plain = svdo.plain(model)
    assert [type(layer) for layer in plain.order] == [nn.Linear, nn.Linear]
    assert torch.equal(plain(x), model.eval()(x))
    assert plain.a.weight.count_nonzero() == 0


class ReadsAWeight(nn.Sequential):
    """Uses its second layer's weight without calling the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self[0](x), self[1].weight)


class ReadsAllWeights(nn.Sequential):
    """Calls none of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self[1].bias, F.linear(x, self[0].weight, self[0].bias), self[1].weight.t())


class TakesParameters(nn.Sequential):
    """Goes past its second layer and past its ``weight``, too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self[0](x), next(self[1].parameters()))


def test_a_network_that_calls_no_layer_is_said() -> None:
    model = svdo.convert(ReadsAllWeights(nn.Linear(4, 4), nn.Linear(4, 4)), "sparsevd").train()
    model(torch.randn(2, 4))
    with pytest.warns(UserWarning, match=r"noisy layers 0, 1: .*exclude=\['0', '1'\]"):
        svdo.kl(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = svdo.plain(model.eval())
    x = torch.randn(3, 4)
    assert torch.equal(small(x), model(x))


def test_plain_says_where_a_network_may_have_taken_parameters_past_the_layer() -> None:
    model = svdo.convert(TakesParameters(nn.Linear(4, 4), nn.Linear(4, 4)), "sparsevd").eval()
    model(torch.randn(2, 4))
    with pytest.warns(UserWarning, match=r"noisy layers 1 .*exclude=\['1'\]"):
        svdo.plain(model)


def test_a_layer_that_is_read_past_is_said_in_training_and_evaluates_as_its_plain_network() -> None:
    model = svdo.convert(ReadsAWeight(nn.Linear(4, 4), nn.Linear(4, 4)), "sparsevd")
    with torch.no_grad():
        model[1].noise.log_sigma2[:, ::2] = 9.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svdo.kl(model)  # before the first pass nothing is known
    model(torch.randn(2, 4))
    for look in (svdo.kl, lambda model: svdo.advance(model, 1, 2)):
        with pytest.warns(UserWarning, match=r"noisy layers 1: .*exclude=\['1'\]"):
            look(model)
    again = svdo.convert(ReadsAWeight(nn.Linear(4, 4), nn.Linear(4, 4)), "sparsevd")
    again.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(svdo.plain(again)(x), again.eval()(x))
    assert not torch.equal(F.linear(again[0](x), again[1].theta), again(x))
    model[1](torch.randn(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svdo.kl(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_refused(dtype: torch.dtype) -> None:
    # From log sigma^2 = -10 the next bfloat16 is 0.06 away: steps of 1e-3 are rounded to nothing.
    with pytest.raises(
        UserError, match=rf"layers 0,4 are each|layer 0 is a torch.nn.Conv2d in {str(dtype).removeprefix('torch.')}, .*autocast"
    ):
        svdo.convert(small().to(dtype), "sparsevd")


def test_float16_autocast_learns_like_float32() -> None:
    model = svdo.convert(small().train(), "sparsevd")
    x, y = images(), torch.tensor([0, 1, 2, 0, 1])
    x[:, :, :, :2] = 0.0  # a border: outputs without variance
    x[0] = 300.0  # whose square is no float16
    gradients = []
    for half in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=half):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.01 * exact.abs().max().item() + 1e-5)


def test_a_weight_that_a_hook_makes_is_refused() -> None:
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"layer 0 is a torch\.nn\.Linear whose weight a hook"):
        svdo.convert(net, "sparsevd")
    assert kinds(svdo.convert(net, "sparsevd", exclude=["0"])) == ["Linear", "NoisyLinear"]
    net(torch.randn(2, 3))  # leaves a computed weight behind, which torch cannot copy
    with pytest.raises(UserError, match=r"cannot be copied: .*take torch\.nn\.utils\.parametrizations"):
        svdo.convert(net, "sparsevd", exclude=["0"])


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].forward = lambda x: F.linear(x, net[0].weight)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"layer 0 is a torch\.nn\.Linear with a forward of its own, which cannot be converted"):
        svdo.convert(net, "sparsevd")
    assert kinds(svdo.convert(net, "sparsevd", exclude="0")) == ["Linear", "NoisyLinear"]


def test_what_is_no_module_or_no_pattern_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"takes a torch\.nn\.Module, not a OrderedDict"):
        svdo.convert(small().state_dict(), "sparsevd")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"exclude=\[0\] must be a pattern or a list of patterns"):
        svdo.convert(small(), "sparsevd", exclude=[0])  # type: ignore[list-item]
    with pytest.raises(UserError, match="include=None must be"):
        svdo.convert(small(), "sparsevd", include=None)  # type: ignore[arg-type]


def test_a_layer_that_starts_removed_is_named_for_it_would_never_train() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(net[1].weight)
    with pytest.warns(UserWarning, match=r"removed from the start, .* in: 1; lower log_sigma2"):
        model = svdo.convert(net, "sparsevd").train()
    model(torch.randn(8, 4)).square().sum().backward()
    assert not model[1].weight.grad.any()
    assert model[0].weight.numel() == svdo.sparsity(svdo.convert(net, "sparsevd", log_sigma2=-60, exclude="1"))[0].nonzero


def test_what_a_start_removes_is_the_documented_size() -> None:
    layer = nn.Linear(3, 1)
    layer.weight = nn.Parameter(torch.tensor([[0.0040, 0.0042, 1.0]]))  # around exp((-8 - 3) / 2) = 0.00409
    assert svdo.masks(svdo.convert(layer, "sparsevd", log_sigma2=-8))[""].tolist() == [[False, True, True]]


def test_a_weight_that_layers_share_is_named() -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    net[0].weight = net[1].weight
    with pytest.warns(UserWarning, match=r"0\.weight is also the weight of 1:"):
        svdo.convert(net, "sparsevd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svdo.convert(nn.Sequential(net[1], net[1]), "sparsevd")  # one layer, used twice


def test_parameter_groups_decay_weights_alone_and_scale_the_noise() -> None:
    model = svdo.convert(small(), "sws")
    groups = svdo.parameter_groups(model, lr=1e-2, weight_decay=0.5)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert {id(p) for p in decayed} == {id(model[0].weight), id(model[4].weight)}
    noise = {id(p) for name, p in model.named_parameters() if "noise." in name}
    assert {id(p) for group in groups if group["noise"] for p in group["params"]} == noise
    assert sorted({group["lr"] for group in groups}) == pytest.approx([0.002, 0.01, 0.06])
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_that_training_does_not_have_is_refused(step: int) -> None:
    with pytest.raises(UserError, match=f"step {step} of 10"):
        svdo.advance(svdo.convert(small(), "pruning"), step, 10)


def test_a_bare_string_is_one_pattern_or_refused_but_never_a_list_of_letters() -> None:
    for choice, expected in (({"include": "4*"}, ["Conv2d", "NoisyLinear"]), ({"exclude": "4*"}, ["NoisyConv2d", "Linear"])):
        try:
            model = svdo.convert(small(), "sparsevd", **choice)
        except UserError:
            continue
        assert kinds(model)[::4] == expected


def test_rates_by_pattern_give_layers_their_own_noise_or_none() -> None:
    model = svdo.convert(small(), "gaussian_b", rates={"*": 0.2, "4": 0.5})
    assert model[0].noise.log_alpha(model[0].weight).exp().item() == pytest.approx(0.25)
    assert model[4].noise.log_alpha(model[4].weight).exp().item() == pytest.approx(1.0)
    assert kinds(svdo.convert(small(), "gaussian_b", rates={"4": 0.5}))[::4] == ["Conv2d", "NoisyLinear"]
    assert kinds(svdo.convert(small(), "gaussian_b", rates={"*": 0.5, "0": 0.0}))[::4] == ["Conv2d", "NoisyLinear"]


def test_settings_come_by_keyword_or_inside_a_method() -> None:
    by_name = svdo.convert(small(), "sparsevd", log_sigma2=-7.0)
    by_value = svdo.convert(small(), SparseVD(log_sigma2=-7.0))
    for model in (by_name, by_value):
        assert (model[4].noise.log_sigma2 == -7).all()
    with pytest.raises(UserError):
        svdo.convert(small(), SparseVD(), log_sigma2=-7.0)


class Scaled(nn.Linear):
    """A Linear with behaviour of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def test_a_subclass_of_linear_is_refused_by_name_unless_excluded() -> None:
    net = nn.Sequential(nn.Linear(2, 2), Scaled(2, 2))
    with pytest.raises(UserError, match=r"layer 1 is a [\w.]*Scaled, a subclass of torch.nn.Linear .*exclude=\['1'\]"):
        svdo.convert(net, "sparsevd")
    assert kinds(svdo.convert(net, "sparsevd", exclude=["1"])) == ["NoisyLinear", "Scaled"]


def test_a_second_conversion_is_refused() -> None:
    model = svdo.convert(small(), "sparsevd", include=["4"])
    with pytest.raises(UserError, match="already"):
        svdo.convert(model, "vd_b", include=["0"])


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError) as error:
        svdo.convert(small(), "sparse_vd")
    assert all(name in str(error.value) for name in METHODS)


def test_an_unknown_field_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError) as error:
        svdo.convert(small(), "sparsevd", tresholt=3.0)
    assert all(name in str(error.value) for name in ("tresholt", "threshold", "log_sigma2", "train_clip"))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sparsevd", {"parameterization": "original"}, ["parameterization", "additive", "multiplicative"]),
        ("sparsevd", {"parameterization": "multiplicative"}, ["train_clip"]),
        ("vd_a", {"sharing": "weight"}, ["sharing", "layer", "unit"]),
        ("vd_b", {"sharing": "filter"}, ["sharing", "layer", "unit", "weight"]),
        ("binary", {"rates": {"*": 1.0}}, ["rates", "[0, 1)"]),
        ("vd_b", {"rates": {"fc": -0.1}}, ["rates", "fc"]),
        ("binary", {"rates": 0.3}, ["rates"]),
        ("binary", {"rates": {"*": 0.5, "fc9": 0.2}}, ["method.rates", "fc9"]),
        ("dns", {"crispness": 5.0}, ["method.crispness=5.0", "mapping"]),
        ("pruning", {"quality": 2.0}, ["method.quality=2.0", "mapping"]),
        ("dns", {"crispness": {"fc9*": 5.0}}, ["method.crispness", "fc9*"]),
        ("pruning", {"quality": {"fc9": 2.0}}, ["method.quality", "fc9"]),
        ("pruning", {"quality": {"*": math.nan}}, ["method.quality[*]=nan"]),
        ("pruning", {"rounds": 2.5}, ["method.rounds=2.5", "int"]),
        ("binary", {"rates": {"*": "x"}}, ["method.rates[*]=x", "number"]),
        ("binary", {"rates": {1: 0.5}}, ["method.rates", "pattern"]),
        ("sparsevd", {"train_clip": "no"}, ["method.train_clip=no", "bool"]),
        ("sparsevd", {"log_sigma2": "x"}, ["method.log_sigma2=x", "number"]),
        ("dns", {"gamma": math.inf}, ["method.gamma=inf", "finite"]),
    ],
)
def test_a_bad_value_is_refused_with_what_may_stand_there(name: str, settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        svdo.convert(small(), name, **settings)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_no_matching_layer_is_refused() -> None:
    for net, choice in (
        (nn.Sequential(nn.ReLU()), {}),
        (small(), {"include": ["nothing"]}),
        (small(), {"exclude": ["*"]}),
    ):
        with pytest.raises(UserError, match="no Linear or Conv2d"):
            svdo.convert(net, "sparsevd", **choice)


def test_sampling_gives_noise_in_evaluation_and_restores_silence() -> None:
    model = svdo.convert(small(), "sparsevd", log_sigma2=-3.0)
    x = images()
    quiet = model(x)
    with svdo.sampling(model):
        first, second = model(x), model(x)
        assert not model.training
    assert not torch.equal(first, second)
    assert not torch.equal(first, quiet)
    assert torch.equal(model(x), quiet)


def test_sampling_ends_also_on_an_error() -> None:
    model = svdo.convert(small(), "sparsevd", log_sigma2=-3.0)

    def fail() -> None:
        with svdo.sampling(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model(images()), model(images()))


def test_sampling_inside_sampling_leaves_the_outer_one_on() -> None:
    model = svdo.convert(small(), "sparsevd", log_sigma2=-3.0)
    with svdo.sampling(model):
        with svdo.sampling(model):
            pass
        assert not torch.equal(model(images()), model(images()))
    assert torch.equal(model(images()), model(images()))


def test_kl_of_a_plain_module_is_0() -> None:
    for module in (small(), nn.ReLU()):
        value = svdo.kl(module)
        assert value.shape == ()
        assert value.item() == 0.0


def test_a_converted_network_survives_pickling_whole() -> None:
    model = svdo.convert(small(), "sparsevd")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images()), model(images()))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_plain_is_the_network_that_evaluation_uses_without_svdo(method: str) -> None:
    network = small()
    model = svdo.convert(network, method)
    with torch.no_grad():
        for _, layer in noisy_layers(model):
            if isinstance(log_sigma2 := getattr(layer.noise, "log_sigma2", None), Tensor):
                log_sigma2[:, ::2] = 9.0  # removes every second input's weights
    svdo.advance(model, 1, 1)
    before = copy.deepcopy(model.state_dict())
    plain = svdo.plain(model)
    assert kinds(plain) == kinds(network)
    assert torch.equal(plain(images()), model.eval()(images()))
    assert plain.state_dict().keys() == network.state_dict().keys()
    assert [svdo.sparsity(plain)[i].nonzero for i in (0, 1)] == [svdo.sparsity(model)[i].nonzero for i in (0, 1)]
    assert torch.equal(plain.train()(images()), plain(images()))  # nothing is random
    for parameter in plain.parameters():
        parameter.data.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # a copy
    assert kinds(svdo.convert(plain, "sparsevd"))[0] == "NoisyConv2d"  # it can be converted again


def test_plain_of_a_single_layer_keeps_its_mode_device_and_hooks() -> None:
    layer = nn.Linear(3, 2)
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    plain = svdo.plain(svdo.convert(layer.eval(), "sparsevd", log_sigma2=-30.0))
    assert type(plain) is nn.Linear
    assert not plain.training
    assert torch.equal(plain.weight, layer.weight)
    plain(torch.zeros(1, 3))
    assert seen == [1]
