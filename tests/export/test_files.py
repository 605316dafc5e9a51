"""Networks to files and back, and out of the run store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from torch import Tensor, nn

import svdo
from svdo.export import container
from svdo.export.files import load, save
from svdo.methods import METHODS


class Own(nn.Module):
    """A network that a file cannot describe."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.fc1, self.fc2 = nn.Linear(16, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def chain() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(network: nn.Module, method: str, **settings: object) -> nn.Module:
    """Converted, and moved by a few steps."""
    torch.manual_seed(0)
    model = svdo.convert(network, method, **settings).train()
    optimizer = torch.optim.Adam(svdo.parameter_groups(model, lr=0.05))
    for step in range(4):
        svdo.advance(model, step, 4)
        loss = F.cross_entropy(model(images()), torch.arange(6) % 3) + 0.01 * svdo.kl(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    svdo.advance(model, 4, 4)
    return model.eval()


def images() -> Tensor:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def same(found: nn.Module, model: nn.Module) -> None:
    assert not found.training
    assert torch.equal(found(images()), model(images()))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())
    assert svdo.sparsity(found) == svdo.sparsity(model)
    assert torch.equal(svdo.kl(found), svdo.kl(model))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_by_itself_and_into_a_class(tmp_path: Path, method: str) -> None:
    for number, (network, into) in enumerate(((chain(), None), (Own(), Own()))):
        model = trained(network, method)
        size = save(model, tmp_path / str(number), method=method)
        assert size == (tmp_path / str(number)).stat().st_size
        found = load(tmp_path / str(number), into=into)
        same(found, model)
        assert list(svdo.masks(found)) == list(svdo.masks(model))
        save(found, tmp_path / f"{number} again")  # what was loaded tells its method
        same(load(tmp_path / f"{number} again", into=into), model)


def test_settings_and_excluded_layers_come_back(tmp_path: Path) -> None:
    model = trained(chain(), "sparsevd", threshold=1.5, log_sigma2=-4.0, exclude=["0", "4"])
    save(model, tmp_path / "net", method="sparsevd", threshold=1.5, log_sigma2=-4.0)
    same(load(tmp_path / "net"), model)
    rates = {"fc*": 0.3, "conv": 0.0}
    model = trained(Own(), "gaussian_b", rates=rates)
    save(model, tmp_path / "own", method="gaussian_b", rates=rates)
    same(load(tmp_path / "own", into=Own()), model)


def test_training_goes_on_from_a_file_as_from_the_network(tmp_path: Path) -> None:
    model = trained(chain(), "sparsevd")
    save(model, tmp_path / "net", method="sparsevd")
    found = load(tmp_path / "net")
    for each in (model, found):
        each.train().zero_grad()
        torch.manual_seed(3)
        (each(images()).sum() + svdo.kl(each)).backward()
    for (name, p), q in zip(model.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_network(tmp_path: Path, dtype: torch.dtype) -> None:
    network = svdo.plain(trained(chain(), "pruning")).to(dtype)
    save(network, tmp_path / "net")
    found = load(tmp_path / "net")
    assert torch.equal(found(images().to(dtype)), network(images().to(dtype)))
    save(svdo.plain(trained(Own(), "pruning")), tmp_path / "own")
    with pytest.raises(svdo.UserError, match="pass it as into="):
        load(tmp_path / "own")


def test_another_method_than_the_networks_is_not_written(tmp_path: Path) -> None:
    model = trained(chain(), "sparsevd", threshold=-1.0)
    for options, words in (
        ({"method": "sparsevd"}, "was not converted with method=sparsevd and these settings"),
        ({"method": "pruning"}, "was not converted with method=pruning"),
        ({"method": "nosuch"}, "method=nosuch is not a choice"),
        ({"method": "sparsevd", "nosuch": 1}, "no such settings: nosuch"),
    ):
        with pytest.raises(svdo.UserError, match=words):
            save(model, tmp_path / "net", **options)
    with pytest.raises(svdo.UserError, match="was not converted with method=sparsevd"):
        save(chain(), tmp_path / "net", method="sparsevd")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(b"precious")
    with pytest.raises(svdo.UserError, match="exists; name another file, or pass overwrite=True"):
        save(chain(), path)
    assert path.read_bytes() == b"precious"
    save(chain(), path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    load(path)
    with pytest.raises(svdo.UserError, match="cannot be written"):
        save(chain(), tmp_path / "nosuch" / "net")
    with pytest.raises(svdo.UserError, match="cannot be written"):
        save(chain(), tmp_path, overwrite=True)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    save(trained(Own(), "sparsevd"), tmp_path / "net", method="sparsevd")
    renamed = Own()
    renamed.last = renamed.fc2
    del renamed.fc2
    noisy = svdo.convert(Own(), "sparsevd")
    for into, words in (
        (Own(9), r"its fc1.weight is of shape \(8, 16\), the network's \(9, 16\)"),
        (renamed, r"no Linear or Conv2d called \['fc2'\]"),
        (noisy, "noisy layers already"),
        (nn.ReLU(), r"no Linear or Conv2d called \['conv'\]"),
    ):
        with pytest.raises(svdo.UserError, match=words) as error:
            load(tmp_path / "net", into=into)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, 3, [], nn.Linear], ids=str)
def test_what_is_no_path_or_no_method_is_refused_in_one_line(tmp_path: Path, value: object) -> None:
    with pytest.raises(svdo.UserError, match="is no path"):
        load(value)
    with pytest.raises(svdo.UserError, match=r"no torch\.nn\.Module|does not exist"):
        load(tmp_path / "net", into=value)
    if value is not None:
        with pytest.raises(svdo.UserError, match="is no method"):
            save(Own(), tmp_path / "net", method=value)
    assert not list(tmp_path.iterdir())


def test_files_of_others_of_the_future_and_damaged_ones(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    torch.save({}, tmp_path / "pickle")
    save_file({"a": torch.zeros(2)}, tmp_path / "newer", {"format": "svdo", "version": "2", "description": "{}"})
    save(trained(chain(), "vd_b"), tmp_path / "good", method="vd_b")
    data = bytearray((tmp_path / "good").read_bytes())
    data[-5] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    tensors, description = container.read(tmp_path / "good")
    for name, change in (
        ("method", {"method": {"name": "nosuch"}}),
        ("setting", {"method": {"name": "vd_b", "nosuch": 1}}),
        ("layers", {"layers": ["a"]}),
        ("words", {"layers": 3}),
        ("kind", {"kind": "other"}),
        ("network", {"network": [["0", "Linear", {}]]}),
    ):
        container.write(tmp_path / name, tensors, description | change, overwrite=False)
    for path in sorted(tmp_path.iterdir()):
        if path.name == "good":
            continue
        with pytest.raises(svdo.UserError) as error:
            load(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value), path.name
    with pytest.raises(svdo.UserError, match="newer version"):
        load(tmp_path / "newer")
    with pytest.raises(svdo.UserError, match="was not written by svdo"):
        load(tmp_path / "foreign")


def test_runs(tmp_path: Path, svdo_run: Command) -> None:
    """By folder and by id, without Hydra and where the data set is not at hand."""
    arguments = ("model=mlp", "model.width=16", "dataset.subset=500", "train.epochs=1", "method=sparsevd", "seed=4")
    assert svdo_run(*arguments, "train.kl_start=0").returncode == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    record = json.loads((folder / "result.json").read_text())
    model = load(folder)
    assert [vars(layer) for layer in svdo.sparsity(model)] == [
        {key: layer[key] for key in ("name", "weights", "nonzero", "inputs", "outputs")} for layer in record["layers"]
    ]
    assert torch.equal(load(folder.name, results_dir=tmp_path / "results").fc1.weight, model.fc1.weight)
    code = f"""
import sys, svdo
from svdo.export.files import load
load({str(folder)!r})
assert not {{"hydra", "omegaconf"}} & set(sys.modules)
"""
    environment = {"SVDO_DATA": "/nonexistent", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    weights = (folder / "weights.pt").read_bytes()
    (folder / "weights.pt").write_bytes(weights[:-100])
    with pytest.raises(svdo.UserError, match="damaged"):
        load(folder)
    (folder / "weights.pt").unlink()
    with pytest.raises(svdo.UserError, match="kept without its weights"):
        load(folder)
    (folder / "result.json").unlink()
    for source, words in (
        (folder, "no finished run"),
        ("nosuch-run", "no finished run"),
        (tmp_path, "no run's folder"),
        (tmp_path / "nosuch" / "file", "does not exist"),
    ):
        with pytest.raises(svdo.UserError, match=words):
            load(source, results_dir=tmp_path / "results")
    with pytest.raises(svdo.UserError, match="into= is for the networks of files"):
        load(folder, into=chain())
