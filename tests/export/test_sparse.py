"""Gap-coded files: exact, small, and refused where they are not what they say."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import svdo
from svdo.export import container, files, sparse
from svdo.export.compact import compact


def network(share: float = 0.97, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(6 * 7 * 7, 100), nn.Tanh(), nn.Linear(100, 10)),
    ).to(dtype)
    with torch.no_grad():
        for layer in made:
            if isinstance(layer, nn.Linear):
                layer.weight *= torch.rand(layer.weight.shape) > share
                layer.bias[0] = -0.0
    return made.eval()


def same(found: nn.Module, expected: nn.Module) -> None:
    """Bit by bit, but for the sign of zeros."""
    states = found.state_dict(), expected.state_dict()
    assert list(states[0]) == list(states[1])
    for key, value in states[1].items():
        assert states[0][key].dtype == value.dtype
        assert torch.equal(states[0][key], value), key
        assert not (torch.signbit(states[0][key]) & (states[0][key] == 0)).any()


@pytest.mark.parametrize("coding", sparse.CODINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_comes_back_bit_by_bit_without_its_class(tmp_path: Path, coding: str, dtype: torch.dtype) -> None:
    net = network(dtype=dtype)
    assert torch.signbit(net[5].weight[net[5].weight == 0]).any()
    size = sparse.save(net, tmp_path / "net", coding=coding)
    assert size == (tmp_path / "net").stat().st_size
    found = svdo_load(tmp_path / "net")
    same(found, net)
    assert not found.training
    x = torch.randn(3, 1, 16, 16, dtype=dtype)
    assert torch.equal(found(x), net(x))


def svdo_load(path: Path, into: nn.Module | None = None) -> nn.Module:
    return files.load(path, into=into)


def test_half_precision_rounds_and_nothing_more(tmp_path: Path) -> None:
    net = network()
    full, half = (sparse.save(net, tmp_path / str(half), half=half) for half in (False, True))
    assert half < 0.75 * full
    same(svdo_load(tmp_path / "True"), net.half().float())
    net = network()
    net[7].bias.data[0] = 1e6
    with pytest.raises(svdo.UserError, match=r"7\.bias has values that float16 does not hold"):
        sparse.save(net, tmp_path / "more", half=True)
    assert not (tmp_path / "more").exists()


def by_hand(entries: list[int], length: int) -> list[int]:
    """The places of values, one entry after the other."""
    places, at = [], 0
    for entry in entries:
        at += entry if entry < 255 else 255
        if entry < 255:
            places.append(at)
            at += 1
    assert places.pop() == length
    return places


@pytest.mark.parametrize("seed", range(20))
def test_gaps_of_any_length(seed: int) -> None:
    g = random.Random(seed)
    steps = [g.choice([0, 1, 7, 253, 254, 255, 256, 509, 510, 511, 1000]) for _ in range(g.randrange(6))]
    places = np.cumsum([step + 1 for step in steps]).astype(int) - 1 if steps else np.empty(0, int)
    length = (int(places[-1]) + 1 if steps else 0) + g.choice([0, 1, 254, 255, 256, 600])
    entries = sparse._gaps(places, length)
    assert entries.dtype == np.uint8
    assert by_hand(entries.tolist(), length) == places.tolist()
    assert sparse._places(entries).tolist() == places.tolist()


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_nothing_removed_and_everything_removed(tmp_path: Path, share: float) -> None:
    net = network(share)
    sparse.save(net, tmp_path / "net")
    same(svdo_load(tmp_path / "net"), net)


def test_not_a_number_and_infinity_are_values(tmp_path: Path) -> None:
    net = network()
    net[7].weight.data[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    sparse.save(net, tmp_path / "net", half=True)
    found = svdo_load(tmp_path / "net")[7].weight
    torch.testing.assert_close(found, net[7].weight.half().float(), equal_nan=True, rtol=0, atol=0)


def test_a_compacted_network_keeps_its_select(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    with torch.no_grad():
        net[1].weight[:, 300:] = 0.0
    small = compact(net, torch.randn(1, 1, 28, 28)).module
    sparse.save(small, tmp_path / "net")
    found, x = svdo_load(tmp_path / "net"), torch.randn(4, 1, 28, 28)
    assert torch.equal(found(x), small(x))
    assert found[1].index.dtype == torch.int64


class Own(nn.Module):
    """A network that a file cannot describe."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 6)
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


def test_a_network_of_ones_own_class_needs_one_to_go_into(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = Own(), Own()
    before = other.first.weight.clone()
    sparse.save(net, tmp_path / "net")
    same(svdo_load(tmp_path / "net", into=other), net)
    assert torch.equal(other.first.weight, before)
    for into, words in (
        (None, "pass it as into="),
        (Own(9), r"its first.weight is of shape \(8, 6\), the network's \(9, 6\)"),
        (nn.Linear(2, 2), "it has no weight, which the network has"),
        (Own().double(), "its first.weight is torch.float32, the network's torch.float64"),
    ):
        with pytest.raises(svdo.UserError, match=words) as error:
            svdo_load(tmp_path / "net", into=into)
        assert "\n" not in str(error.value)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    mixed = network()
    mixed[7].double()
    for net, options, words in (
        (network(), {"coding": "zip"}, "coding=zip is not a choice"),
        (mixed, {}, "one floating point type"),
        (network().bfloat16(), {}, "float32 or float64"),
    ):
        with pytest.raises(svdo.UserError, match=words):
            sparse.save(net, tmp_path / "net", **options)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    sparse.save(network(), tmp_path / "net")
    good, g = (tmp_path / "net").read_bytes(), random.Random(0)
    tries = [good[:length] for length in (0, 4, 8, 100, len(good) // 2, len(good) - 1)]
    for _ in range(60):
        place, bit = g.randrange(len(good)), g.randrange(8)
        tries.append(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
    for number, data in enumerate(tries):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(svdo.UserError) as error:
            svdo_load(tmp_path / "bad")
        assert "\n" not in str(error.value), number
        assert str(tmp_path / "bad") in str(error.value)


def forged(path: Path, change: Any) -> None:
    """A file with a right checksum whose parts ``change`` has had its way with."""
    sparse.save(network(), path, coding="none", overwrite=True)
    tensors, kind = container.read(path)
    layout = json.loads(tensors["layout"].numpy().tobytes())
    change(tensors, kind, layout)
    tensors["layout"] = torch.from_numpy(np.frombuffer(json.dumps(layout).encode(), np.uint8).copy())
    container.write(path, tensors, kind, overwrite=True)


def entry(layout: Any, name: str) -> Any:
    return next(tensor for tensor in layout["tensors"] if tensor[0] == name)


FORGERIES = {
    "gaps beyond the end": lambda t, k, f: t["gaps"].__setitem__(0, 254),
    "a filler at the end": lambda t, k, f: t["gaps"].__setitem__(-1, 255),
    "too few gaps": lambda t, k, f: t.update(gaps=t["gaps"][:-1]),
    "too many gaps": lambda t, k, f: t.update(gaps=torch.cat([t["gaps"], t["gaps"]])),
    "too few values": lambda t, k, f: t.update(values=t["values"][:-1]),
    "too many values": lambda t, k, f: t.update(values=torch.cat([t["values"], t["values"]])),
    "no values": lambda t, k, f: t.pop("values"),
    "values of another type": lambda t, k, f: t.update(values=t["values"].int()),
    "a huge sparse shape": lambda t, k, f: entry(f, "5.weight").__setitem__(2, [10**9, 10**9]),
    "a huge dense shape": lambda t, k, f: entry(f, "5.bias").__setitem__(2, [10**12]),
    "a negative shape": lambda t, k, f: entry(f, "5.bias").__setitem__(2, [-100]),
    "a shape of words": lambda t, k, f: entry(f, "5.bias").__setitem__(2, ["a"]),
    "an unknown way to store": lambda t, k, f: entry(f, "5.bias").__setitem__(1, "zip"),
    "a tensor twice": lambda t, k, f: f["tensors"].append(f["tensors"][0]),
    "a tensor less": lambda t, k, f: f["tensors"].pop(),
    "a huge layer": lambda t, k, f: f["network"][5][2].update(out_features=10**9),
    "an impossible layer": lambda t, k, f: f["network"][5][2].update(out_features=-3),
    "a layer's argument of another kind": lambda t, k, f: f["network"][5][2].update(out_features={"a": 1}),
    "another argument": lambda t, k, f: f["network"][5][2].update(device="cuda"),
    "an unknown layer": lambda t, k, f: f["network"][5].__setitem__(1, "eval"),
    "a layer twice": lambda t, k, f: f["network"].append(f["network"][0]),
    "no layers": lambda t, k, f: f.update(network=7),
    "no network at all": lambda t, k, f: f.pop("network"),
    "deep nesting": lambda t, k, f: f.update(network=nested(200)),
    "an unknown type": lambda t, k, f: k.update(dtype="complex64"),
    "a wrong length": lambda t, k, f: k.update(lzma={"layout": 0, "gaps": 10**9, "values": 0}),
    "a count of another shape": lambda t, k, f: t.update({"tensor.1.num_batches_tracked": torch.zeros(3, dtype=torch.int8)}),
    "an unknown kind": lambda t, k, f: k.update(kind="other"),
}


def nested(depth: int) -> Any:
    layers: Any = []
    for _ in range(depth):
        layers = [["0", "Sequential", layers]]
    return layers


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_that_is_not_what_it_says_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    forged(tmp_path / "net", FORGERIES[name])
    with pytest.raises(svdo.UserError) as error:
        svdo_load(tmp_path / "net")
    assert "\n" not in str(error.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    def change(tensors: Any, kind: Any, layout: Any) -> None:
        import lzma

        bomb = lzma.compress(bytes(10**7), lzma.FORMAT_RAW, filters=sparse._FILTERS)
        tensors["gaps"] = torch.from_numpy(np.frombuffer(bomb, np.uint8).copy())
        kind["lzma"] = {"layout": 0, "gaps": 10**7, "values": 0}

    forged(tmp_path / "net", change)
    with pytest.raises(svdo.UserError, match="other lengths"):
        svdo_load(tmp_path / "net")
