"""C written from sparse networks against torch, on code that the machine's compiler has made."""

import copy
import os
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svdo import UserError
from svdo.export.c import FLAGS, Compiled, build, c_source, compiled, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
QUICK = ("-O0", "-shared", "-fPIC")
BATCHES = (1, 3, 15, 16, 17, 100)


def sparse(network: nn.Module, keep: float = 0.3, seed: int = 0) -> nn.Module:
    """Random zeros, random biases and, in batch norm, random statistics."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight)
            layer.weight.data *= torch.rand_like(layer.weight) < keep
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return network.eval()


def agrees(run: Compiled, network: nn.Module, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 17)) -> None:
    """Whether C gives what torch gives, for one image and for batches, whatever was computed before."""
    x = torch.randn(max(batches), *shape)
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(x.double()).flatten(1).numpy()
    scale = np.abs(expected).max() + 1e-6
    for n in (*batches, 1):
        np.testing.assert_allclose(run(x[:n].numpy()), expected[:n], rtol=0, atol=2e-6 * scale, err_msg=f"batch of {n}")


Case = tuple[nn.Module, tuple[int, ...]]


def conv(*sizes: int, side: int = 9, **settings: object) -> Case:
    layer = nn.Conv2d(*sizes, **settings)  # type: ignore[arg-type]
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    shape = (sizes[0], side, side + 2)
    network(torch.zeros(1, *shape))
    return network, shape


CONVOLUTIONS = {
    "plain": conv(2, 5, 3),
    "padded": conv(2, 5, 3, padding=1),
    "uneven": conv(2, 5, (3, 2), padding=(0, 2), stride=(1, 2)),
    "strided": conv(3, 4, 3, stride=2, padding=1),
    "stride 3, no bias": conv(3, 4, 4, stride=3, padding=2, bias=False),
    "same, even kernel": conv(2, 3, 4, padding="same"),
    "dilated": conv(2, 3, 3, dilation=2, padding=2),
    "dilated and strided": conv(2, 3, 3, dilation=3, stride=2, padding=3),
    "grouped": conv(4, 6, 3, groups=2, padding=1),
    "depthwise": conv(4, 8, 3, groups=4, stride=2),
    "pointwise": conv(5, 7, 1),
    "pointwise, strided past the edge": conv(5, 7, 1, stride=4),
    "covering": conv(2, 3, (9, 11)),
    "tiny": conv(1, 1, 1, side=1),
}


POOLINGS = {
    "max 2": nn.MaxPool2d(2),
    "max 3": nn.MaxPool2d(3),
    "max 2 x 1": nn.MaxPool2d((2, 1)),
    "overlapping": nn.MaxPool2d(3, 2),
    "padded": nn.MaxPool2d(3, 2, padding=1),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "dilated": nn.MaxPool2d(2, 1, dilation=2),
    "large": nn.MaxPool2d(5),
    "average 2": nn.AvgPool2d(2),
    "average, padded": nn.AvgPool2d(3, 2, padding=1),
    "average, padding left out": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, ceil": nn.AvgPool2d(2, ceil_mode=True),
    "average, padded, ceil": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "average, divided by 3": nn.AvgPool2d(2, divisor_override=3),
}


ORDERS = ["relu first", "relu after", "no relu"]


def pooled(name: str, order: str) -> Case:
    """With the pooling between two convolutions, the second one padded and strided so that its input has gaps."""
    middle = {"relu first": [nn.ReLU(), POOLINGS[name]], "relu after": [POOLINGS[name], nn.ReLU()], "no relu": [POOLINGS[name]]}
    last = nn.Conv2d(4, 3, 3, stride=1 + (order == "no relu"), padding=2)
    return nn.Sequential(nn.Conv2d(1, 4, 2), *middle[order], last), (1, 12, 11)


def dense(features: int) -> Case:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, 3, bias=False)), (features,)


def emptied(layer: int) -> Case:
    """Without any weight in one of its layers."""
    network = sparse(nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    ))  # fmt: skip
    network[layer].weight.data.zero_()  # type: ignore[operator, union-attr]
    return network, (2, 9, 9)


class Functional(nn.Module):
    """A chain whose pass is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.flatten(F.relu(self.first(x)), 1))
        return result


NESTED = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))))
NORMS = nn.Sequential(
    nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3, affine=False), nn.MaxPool2d(2),
    nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(27), nn.Linear(27, 4), nn.ReLU(), nn.BatchNorm1d(4),
)  # fmt: skip


def unread() -> Case:
    """Channels that the next layer never reads."""
    network = sparse(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(6 * 16, 3)), 1.0
    )
    network[4].weight.data.view(3, 6, 16)[:, 1:5] = 0.0  # type: ignore[operator, union-attr]
    return network, (1, 10, 10)


def cases() -> dict[str, Case]:
    """Every network that is compiled once, as quickly as can be."""
    random = {
        **{f"convolution, {name}": case for name, case in CONVOLUTIONS.items()},
        **{
            f"pooling, {name}, {order}": pooled(name, order)
            for number, name in enumerate(POOLINGS)
            for order in ORDERS
            if order == ORDERS[number % 3] or name.endswith(" 2")
        },
        **{f"dense, {features} features": dense(features) for features in (1, 5, 8, 9, 20, 784)},
        "written out": (Functional(), (1, 8, 8)),
        "nested": (NESTED, (2, 3, 1)),
        "norms with nothing to be folded into": (NORMS, (2, 8, 8)),
    }
    full, shape = dense(20)
    return {
        **{name: (sparse(network), shape) for name, (network, shape) in random.items()},
        "dense, all weights": (sparse(full, 1.0), shape),
        **{f"layer {layer} emptied": emptied(layer) for layer in (0, 3, 6)},
        "unread": unread(),
    }


CASES = cases()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """The networks in C, in one library: a compiler takes longer to start than such a file takes to compile."""
    library = tmp_path_factory.mktemp("c") / "all.so"
    sources = {
        name: c_source(network, torch.zeros(1, *shape), f"case{number}")
        for number, (name, (network, shape)) in enumerate(CASES.items())
    }
    build(list(sources.values()), library, QUICK)
    return {name: Compiled(source, library) for name, source in sources.items()}


@pytest.mark.parametrize("name", CASES)
def test_c_gives_what_torch_gives(name: str, runs: dict[str, Compiled]) -> None:
    agrees(runs[name], *CASES[name], BATCHES if name.startswith("dense") else (1, 17))


@pytest.mark.parametrize(
    "flags", [("-O2", "-shared", "-fPIC", "-DNETWORK_PLAIN"), FLAGS, ("-mno-avx", *QUICK), ("-DWIDTH=16", *QUICK)]
)
def test_batches_and_instruction_sets(flags: tuple[str, ...]) -> None:
    network = sparse(nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 9, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10),
    ))  # fmt: skip
    agrees(compiled(c_source(network, torch.zeros(1, 1, 16, 16)), flags), network, (1, 16, 16), BATCHES)


def test_units_that_nothing_reads_are_left_out() -> None:
    network, shape = unread()
    few = c_source(network, torch.zeros(1, *shape)).table_bytes
    nn.init.ones_(network[4].weight)  # type: ignore[operator, union-attr]
    assert few < 0.5 * c_source(network, torch.zeros(1, *shape)).table_bytes


def test_many_channels_take_wide_offsets_and_one_image_at_a_time() -> None:
    """A first layer too large to be computed abreast, the rest abreast, offsets beyond 16 bits."""
    network = sparse(nn.Sequential(
        nn.Conv2d(1, 80, 3, padding=1), nn.ReLU(), nn.Conv2d(80, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 2),
    ))  # fmt: skip
    source = c_source(network, torch.zeros(1, 1, 32, 32))
    assert "uint32_t stage" in source.text and "lanes3" in source.text and "lanes1" not in source.text
    agrees(compiled(source, QUICK), network, (1, 32, 32))


@pytest.mark.parametrize("extra", [[], ["-DNETWORK_PLAIN"], ["-DNETWORK_NO_BATCH"], ["-mavx2", "-mfma"], ["-mavx512f"]])
def test_no_warning_under_strict_flags(extra: list[str], tmp_path: "os.PathLike[str]") -> None:
    network = sparse(nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.MaxPool2d(3, 1, 1),
        nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 3),
    ))  # fmt: skip
    source = c_source(network, torch.zeros(1, 1, 16, 16))
    for suffix, text in ((".c", source.text), (".h", source.header)):
        with open(os.path.join(tmp_path, f"network{suffix}"), "w") as file:
            file.write(text)
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", *extra, "-c", "network.c", "-o", "network.o"]
    made = subprocess.run([*(compiler() or []), *strict], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.layer(x)
        return result


def named(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers)).eval()


REFUSED = {
    "gate is a Sigmoid": (named(fc=nn.Linear(4, 4), gate=nn.Sigmoid()), (4,)),
    "conv pads with reflect": (named(conv=nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), (1, 8, 8)),
    "norm keeps no running statistics": (named(fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4, track_running_stats=False)), (4,)),
    "fc takes 5 features": (named(flat=nn.Flatten(), fc=nn.Linear(5, 2)), (1, 2, 2)),
    "fc takes 2 features": (named(fc=nn.Linear(2, 2)), (1, 2, 2)),
    "conv takes 3 channels": (named(conv=nn.Conv2d(3, 2, 1)), (1, 4, 4)),
    "branch": (Branching().eval(), (4,)),
    "no Linear or Conv2d": (named(relu=nn.Flatten()), (4,)),
    "training mode": (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4,)),
    "shape": (named(fc=nn.Linear(4, 4)), (3, 4)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_c_cannot_express_is_refused(reason: str) -> None:
    network, shape = REFUSED[reason]
    with pytest.raises(UserError, match=reason):
        c_source(network, torch.zeros(1, *shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["fc.weight", "fc.bias", "norm.running_var"])
def test_what_is_not_finite_is_refused(value: float, key: str) -> None:
    network = named(fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    network.state_dict()[key].view(-1)[-1] = value
    with pytest.raises(UserError, match=f"layer {key.split('.')[0]} has a {key.split('.')[1]} that is not finite"):
        c_source(network, torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["Net", "my-net", "1st", "", "int x"])
def test_a_name_that_is_none_in_c_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name for C functions"):
        c_source(named(fc=nn.Linear(4, 4)), torch.zeros(1, 4), name)
