"""The weight that evaluation uses: the same wherever it is read, fresh after every change; what states and refusals say."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import svdo
from svdo import UserError


def network(method: str = "sparsevd", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model = svdo.convert(net, method, **settings).eval()
    if method == "sparsevd":
        with torch.no_grad():
            for layer in (model[0], model[3]):
                layer.noise.log_sigma2[:, ::2] = 9.0 if layer is model[3] else layer.noise.log_sigma2[:, ::2]
    return model


def images() -> Tensor:
    return torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].noise.log_sigma2[:, 1] = 9.0
        model[3].theta[:, 3] *= 2.0


def loaded(model: nn.Module) -> None:
    model.load_state_dict({k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assigned(model: nn.Module) -> None:
    state = {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def stepped(**settings: bool) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, **settings)
        model(images()).square().sum().backward()
        with torch.no_grad():
            model(images())  # remembers, between backward and step
        optimizer.step()

    return change


def replaced(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data * 1.5


def written_through_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(1.5)
    model.eval()


def threshold(model: nn.Module) -> None:
    model[3].noise.threshold = -5.0


def another_noise(model: nn.Module) -> None:
    noise = copy.deepcopy(model[3].noise)
    with torch.no_grad():
        noise.log_sigma2.fill_(9.0)
    model[3].noise = noise


CHANGES = {
    "in place": in_place,
    "load": loaded,
    "assign": assigned,
    "fused": stepped(fused=True),
    "foreach": stepped(foreach=True),
    "adam": stepped(),
    "data": replaced,
    "through data": written_through_data,
    "threshold": threshold,
    "noise": another_noise,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gradients", [False, True])
def test_evaluation_sees_every_change(change: str, gradients: bool) -> None:
    model, x = network(), images()
    with torch.set_grad_enabled(gradients):
        before = model(x)
        assert torch.equal(model(x), before)
    CHANGES[change](model)
    with torch.set_grad_enabled(gradients):
        after = model(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, svdo.plain(model)(x))


def test_what_is_remembered_is_not_part_of_copies_pickles_and_other_dtypes() -> None:
    model, x = network(), images()
    with torch.inference_mode():
        first = model(x)
    assert torch.equal(first, model(x))
    assert torch.equal(copy.deepcopy(model)(x), first)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), first)
    assert model.double()(x.double()).dtype == torch.float64
    model(x.double()).sum().backward()
    removed = ~svdo.masks(model)["3"]
    gradient = model[3].theta.grad
    assert removed.any() and not gradient[removed].any() and gradient[~removed].any()


def test_gradients_in_evaluation_pass_what_is_kept_as_often_as_one_likes() -> None:
    model, x = network(), images()
    flat = svdo.plain(model)
    flat(x).square().sum().backward()
    kept = svdo.masks(model)["3"]
    expected = torch.where(kept, flat[3].weight.grad, 0.0)
    with torch.no_grad():
        model(x)  # remembers without gradients
    for times in (1, 2, 3):
        model(x).square().sum().backward()
        torch.testing.assert_close(model[3].theta.grad, times * expected)
    model[3].theta.requires_grad_(False)
    model(x).square().sum().backward()
    torch.testing.assert_close(model[3].theta.grad, 3 * expected)
    model[3].theta.requires_grad_(True)
    model(x).square().sum().backward()
    torch.testing.assert_close(model[3].theta.grad, 4 * expected)


def test_a_replica_computes_with_its_own_weights() -> None:
    model = network()
    layer, x = model[3], torch.randn(2, 16)
    before = layer(x)
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.theta * 2.0, layer.bias * 2.0
    replica._modules = {"noise": layer.noise}
    assert torch.allclose(replica(x), 2.0 * torch.nn.functional.linear(x, replica.evaluation_weight() / 2.0, layer.bias))
    assert not torch.equal(replica(x), before)
    assert torch.equal(layer(x), before)


def test_evaluation_weights_work_inside_transforms() -> None:
    model, x = network(), images()
    reference = model(x)
    assert torch.allclose(torch.func.vmap(lambda one: model(one[None])[0])(x), reference, atol=1e-6)
    doubled = {name: p.detach() * 2 for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(doubled, strict=False)
    assert torch.equal(torch.func.functional_call(model, doubled, (x,)), twin(x))
    assert torch.equal(model(x), reference)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), reference)


def test_thresholds_hold_for_plain_and_for_one_thread() -> None:
    model, x = network(), images()
    outside = model(x)
    with svdo.at_threshold(model, -30.0):
        assert torch.equal(svdo.plain(model)(x), model(x))
        assert not torch.equal(model(x), outside)
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(model(x)))
        thread.start()
        thread.join()
        assert torch.equal(found[0], outside)


def test_sampling_in_threads_stays_in_each_and_ends() -> None:
    model, x = network(), images()
    quiet = model(x).detach()
    right: list[bool] = []

    def work(sample: bool) -> None:
        for _ in range(50):
            if sample:
                with svdo.sampling(model):
                    right.append(not torch.equal(model(x), quiet))
            else:
                right.append(torch.equal(model(x), quiet))

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 200 and all(right)
    assert torch.equal(model(x), quiet)


def test_writing_to_the_weight_that_evaluation_gives_out_is_refused() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.zero_()
    with pytest.raises(UserError, match=r"write to its parameter, layer\.theta"), torch.no_grad():
        model(images())
    assert torch.equal(model(images()), svdo.plain(model)(images()))


@pytest.mark.parametrize("method", ["sparsevd", "pruning", "dns", "sws"])
def test_removed_weights_are_true_zeros(method: str) -> None:
    model = network(method)
    for step in range(11):
        svdo.advance(model, step, 10)
    weights = [*svdo.evaluation_weights(model).values(), *(p for p in svdo.plain(model).parameters())]
    zeros = [weight == 0 for weight in weights]
    assert any(zero.any() for zero in zeros)
    assert not any(weight.signbit()[zero].any() for weight, zero in zip(weights, zeros, strict=True))


AVERAGES = {
    "swa": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "ema by tensor": {"avg_fn": get_ema_avg_fn(0.9)},
}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("method", ["pruning", "dns"])
def test_an_averaged_network_is_as_sparse_as_its_source(method: str, use_buffers: bool, average: str) -> None:
    model = network(method).train()
    averaged = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[average])
    for step in range(11):
        svdo.advance(model, step, 10)
        averaged.update_parameters(model)
    assert svdo.compression(model) == svdo.compression(averaged) > 1.2
    restored = AveragedModel(network(method), use_buffers=use_buffers)
    restored.load_state_dict(averaged.state_dict())
    assert torch.equal(restored.eval()(images()), averaged.eval()(images()))


@pytest.mark.parametrize(
    ("method", "settings", "other", "others"),
    [
        ("sparsevd", {}, "sparsevd", {"threshold": 2.0}),
        ("sparsevd", {}, "sparsevd", {"train_clip": False}),
        ("binary", {"rates": {"*": 0.2}}, "binary", {"rates": {"*": 0.3}}),
        ("binary", {"rates": {"*": 0.2, "3": 0.4}}, "binary", {"rates": {"3": 0.4, "*": 0.2}}),
        ("gaussian_a", {}, "gaussian_b", {}),
        ("pruning", {}, "pruning", {"rounds": 3}),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_other_settings_is_refused_and_nothing_is_loaded(
    method: str, settings: dict[str, object], other: str, others: dict[str, object], strict: bool
) -> None:
    state = {name: value.clone() for name, value in network(method, **settings).state_dict().items()}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    model = network(other, **others)
    with torch.no_grad():
        model[0].theta.fill_(7.0)
    with pytest.raises(UserError, match="convert with the same method and settings"):
        model.load_state_dict(torch.load(file, weights_only=True), strict=strict)
    assert (model[0].theta == 7.0).all()
    network(method, **settings).load_state_dict(state)


def test_a_state_of_before_there_were_settings_loads_with_a_warning_and_its_masks() -> None:
    model = network("pruning")
    for step in range(11):
        svdo.advance(model, step, 10)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("_extra_state")}
    for name in [name for name in state if name.endswith("noise.removed")]:
        state[name.replace("removed", "kept")] = state.pop(name) == 0
    again = network("pruning")
    with pytest.warns(UserWarning, match="earlier version of svdo"):
        again.load_state_dict(state)
    assert torch.equal(again(images()), model(images()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("damaged", [b"", b"{}"], ids=str)
def test_a_state_whose_settings_are_empty_is_as_one_without(damaged: bytes) -> None:
    state = network().state_dict()
    state["0.noise._extra_state"] = torch.tensor(list(damaged), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="does not say which method"):
        network().load_state_dict(state)


@pytest.mark.parametrize("damaged", [b"[]", b"null", b"0", b"{", b'{"version": 1}'], ids=str)
def test_a_state_whose_settings_are_damaged_is_refused(damaged: bytes) -> None:
    state = network().state_dict()
    state["3.noise._extra_state"] = torch.tensor(list(damaged), dtype=torch.uint8)
    with pytest.raises(UserError, match=r"layer 3: .*damaged"):
        network().load_state_dict(state)


@pytest.mark.parametrize("method", ["sparsevd", "vd_b", "binary", "gaussian_a", "pruning"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex32], ids=str)
@pytest.mark.filterwarnings("ignore:.*[Cc]omplex")
def test_complex_numbers_after_conversion_are_refused(method: str, dtype: torch.dtype) -> None:
    model = network(method).to(dtype).train()
    with pytest.raises(UserError, match=r"complex.* real weights"):
        model[3](torch.randn(5, 16).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_after_conversion_is_refused(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    for use in (
        lambda: model(images().to(dtype)),
        lambda: svdo.kl(model),
        lambda: svdo.plain(model),
        lambda: svdo.masks(model),
    ):
        with pytest.raises(UserError, match=r"too narrow .*svdo\.plain"):
            use()


CHANGED_AFTERWARDS = {
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "parametrized weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("change", CHANGED_AFTERWARDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_weight_that_stops_being_a_parameter_is_said(change: str, training: bool) -> None:
    model = network().train(training)

    def change_and_go_on() -> None:
        CHANGED_AFTERWARDS[change](model[3])
        svdo.plain(model)

    with pytest.raises(UserError, match="parameter"):
        change_and_go_on()


class Scaled(nn.Linear):
    """A subclass."""


def integers() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int32), requires_grad=False)
    return layer


def without_weight() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = None
    return layer


def unsuited() -> dict[str, nn.Module]:
    pruned = nn.Linear(3, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    return {
        "Scaled": Scaled(3, 3),
        r"prune\.remove": pruned,
        "parametrization": parametrizations.orthogonal(nn.Linear(3, 3)),
        "batch": nn.LazyLinear(3),
        "complex64": nn.Linear(3, 3, dtype=torch.complex64),
        "float16": nn.Linear(3, 3).half(),
        "int32": integers(),
        "None": without_weight(),
    }


def test_all_refusals_come_at_once_with_an_exclude_to_paste() -> None:
    net = nn.Sequential(nn.Linear(3, 3), *unsuited().values(), Scaled(3, 3))
    with pytest.raises(UserError) as error:
        svdo.convert(net, "sparsevd")
    text = str(error.value)
    assert "layers 1,9 are each a " in text and "\n" not in text
    assert all(word.replace("\\", "") in text for word in unsuited())
    assert "exclude=['1', '9', '2', '3', '4', '5', '6', '7', '8']" in text
    prune.remove(net[2], "weight")
    assert len(svdo.masks(svdo.convert(net, "sparsevd", exclude="1,3,4,5,6,7,8,9"))) == 2


LEFT = {
    "Conv1d": nn.Conv1d(2, 3, 3),
    "Conv3d": nn.Conv3d(2, 3, 3),
    "ConvTranspose2d": nn.ConvTranspose2d(2, 3, 3),
    "Embedding": nn.Embedding(5, 4),
    "LSTM": nn.LSTM(3, 4),
    "MultiheadAttention": nn.MultiheadAttention(4, 2),
    "Bilinear": nn.Bilinear(2, 3, 4),
}


@pytest.mark.parametrize("kind", LEFT)
def test_layers_left_dense_are_named_with_their_share_and_counted_by_compression(kind: str) -> None:
    torch.manual_seed(0)  # a weight near 0 starts as removed
    net = nn.Sequential(nn.Linear(4, 4), LEFT[kind])
    left = sum(p.numel() for p in LEFT[kind].parameters() if p.dim() > 1)
    with pytest.warns(UserWarning, match=rf"1 {kind}.* hold {left} of the network's {left + 16} weights"):
        model = svdo.convert(net, "sparsevd")
    with torch.no_grad():
        model[0].noise.log_sigma2[:2] = 9.0
    assert svdo.compression(svdo.sparsity(model)[:1]) == 2.0
    assert svdo.compression(model) == pytest.approx((left + 16) / (left + 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svdo.convert(net, "sparsevd", exclude=["1"])


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "googlenet", "maxvit_t", "mobilenet_v3_small"])
def test_torchvision_networks_convert_as_they_are(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"init_weights": False} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, **settings)
        model = svdo.convert(net, "sparsevd")
    assert svdo.masks(model)
    assert not any(layer.endswith("self_attention.out_proj") for layer in svdo.masks(model))


WRONG = {
    "kl": lambda value: svdo.kl(value),
    "plain": lambda value: svdo.plain(value),
    "sparsity": lambda value: svdo.sparsity(value),
    "masks": lambda value: svdo.masks(value),
    "evaluation_weights": lambda value: svdo.evaluation_weights(value),
    "compression": lambda value: svdo.compression(value),
    "storage": lambda value: svdo.storage(value),
    "advance": lambda value: svdo.advance(value, 0, 1),
    "parameter_groups": lambda value: svdo.parameter_groups(value, lr=0.1),
    "reestimate_batch_norm": lambda value: svdo.reestimate_batch_norm(value, []),
    "sampling": lambda value: svdo.sampling(value).__enter__(),
    "at_threshold": lambda value: svdo.at_threshold(value, 1.0).__enter__(),
    "step": lambda value: svdo.advance(network(), value, 1),
    "lr": lambda value: svdo.parameter_groups(network(), lr=value),
    "weight_decay": lambda value: svdo.parameter_groups(network(), 0.1, weight_decay=value),
    "threshold": lambda value: svdo.at_threshold(network(), value).__enter__(),
    "batches": lambda value: svdo.reestimate_batch_norm(nn.Sequential(nn.BatchNorm1d(2)), value),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("value", [None, "x", {"a": 1}, float("nan")], ids=str)
def test_a_wrong_type_is_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(UserError) as error:
        WRONG[name](value)
    assert "\n" not in str(error.value)


def test_a_threshold_that_no_float_holds_is_refused() -> None:
    with pytest.raises(UserError, match="threshold"):
        svdo.at_threshold(network(), 10**400).__enter__()


def test_weights_without_values_and_networks_that_wait_for_a_batch_are_named() -> None:
    for use in (svdo.sparsity, svdo.compression, svdo.storage):
        with pytest.raises(UserError, match="meta device"):
            use(network().to("meta"))
    waiting = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(), nn.LazyConv1d(2, 1))
    for use in (
        lambda: svdo.convert(waiting, "sparsevd"),
        lambda: svdo.parameter_groups(waiting, lr=0.1),
        lambda: svdo.compression(waiting),
        lambda: svdo.reestimate_batch_norm(waiting, [torch.randn(2, 2)]),
    ):
        with pytest.raises(UserError, match=r"layer 1, a LazyBatchNorm1d, .*run a batch"):
            use()
    with pytest.raises(UserError, match="no weights to count"):
        svdo.compression(nn.ReLU())


def test_a_weight_that_a_noisy_layer_shares_is_not_called_dense() -> None:
    embedding, out, rest = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Conv1d(2, 3, 1)
    out.weight = embedding.weight
    with pytest.warns(UserWarning, match=r"stay plain and dense: 1 Conv1d; they hold 6 of .* 42 weights"):
        svdo.convert(nn.Sequential(embedding, out, rest), "sparsevd")


def test_rates_of_learning_below_zero_are_refused() -> None:
    for settings in ({"lr": -1.0}, {"lr": float("inf")}, {"lr": 10**400}, {"lr": 0.1, "weight_decay": -1.0}):
        with pytest.raises(UserError, match="not negative"):
            svdo.parameter_groups(network(), **settings)
