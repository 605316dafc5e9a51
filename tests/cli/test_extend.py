"""What is needed of a method, model, data set, task and optimizer of one's own: one class each, and no edit in the package."""

import json
from pathlib import Path

import pytest
from conftest import Command

OWN = '''
"""Echo: of a sequence that is read in pieces, say the symbol that was read one step ago, across the pieces' seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdo.extend import (
    Data, Dataset, DataSpec, Headline, Method, Model, Noise, Task, dataset, method, model, optimizer, task,
)

SYMBOLS = 5


class Pieces:
    """A long text beside another, in pieces of ``length`` symbols, in order: a batch goes on where the last one ended."""

    def __init__(self, text: Tensor, length: int) -> None:
        self.text, self.length = text, length

    def __len__(self) -> int:
        return self.text.shape[1] // self.length * self.text.shape[0]

    def batches(self, size, seed, epoch, start=0):
        assert size == len(self.text)
        echo = F.pad(self.text, (1, 0))[:, :-1]
        for first in range(start * self.length, self.text.shape[1] - self.length + 1, self.length):
            piece = slice(first, first + self.length)
            yield self.text[:, piece], echo[:, piece]

    def chunks(self, size):
        yield from self.batches(len(self.text), 0, 0)


@dataset
@dataclass
class Symbols(Dataset):
    task: ClassVar[str] = "echo"
    name: str = "symbols"
    length: int = 4

    def prepare(self, data_dir, device, progress=True) -> Data:
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(SYMBOLS, (3, 10, 40), generator=generator).to(device)
        spec = DataSpec((self.length,), SYMBOLS, vocabulary=SYMBOLS, dtype=torch.int64, carried=True)
        return Data(Pieces(text[0], self.length), None, Pieces(text[1], self.length), spec)


class Reader(nn.Module):
    """One-hot symbols, an Elman network, logits for each position; the last hidden state is handed on."""

    def __init__(self, data: DataSpec, width: int) -> None:
        super().__init__()
        self.vocabulary = data.vocabulary
        self.read, self.keep = nn.Linear(data.vocabulary, width), nn.Linear(width, width)
        self.say = nn.Linear(width, data.classes)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = []
        for position in F.one_hot(x, self.vocabulary).float().unbind(1):
            state = torch.tanh(self.read(position) + (0.0 if state is None else self.keep(state)))
            outputs.append(self.say(state))
        return torch.stack(outputs, 1), state


@model
@dataclass
class Elman(Model):
    name: str = "elman"
    width: int = 12

    def build(self, data: DataSpec) -> nn.Module:
        return Reader(data, self.width)


@task
@dataclass
class Echo(Task):
    headline: ClassVar[Headline] = Headline("hits", "%", "higher")
    name: str = "echo"

    def size(self, split) -> int:
        return split.text.numel()

    def forward(self, model, inputs, state) -> tuple[Any, Any]:
        outputs, state = model(inputs, state)
        return outputs, state.detach()

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def tally(self, outputs, targets):
        return (outputs.argmax(2) == targets).float().mean(1).sum()

    def training_figure(self, total, examples):
        return 100.0 * total / examples

    @torch.no_grad()
    def evaluate(self, model, split, samples=0):
        model.eval()
        state, found = None, []
        for x, y in split.chunks(10):
            outputs, state = model(x, state)
            found.append((outputs, y))
        outputs, y = (torch.cat(part, 1) for part in zip(*found))
        return {"nll": self.loss(outputs, y).item(), "hits": 100.0 * (outputs.argmax(2) == y).float().mean().item()}


class Halving(Noise):
    random: ClassVar[bool] = False

    def mask(self, weight: Tensor) -> Tensor:
        return weight.abs() >= weight.abs().median()

    def posterior(self, weight: Tensor):
        return weight * self.mask(weight), None


@method
@dataclass
class Half(Method):
    """Every layer keeps the larger half of its weights."""

    label: ClassVar[str] = "Half"
    sparsifies: ClassVar[bool] = True
    name: str = "half"
    ignored: int = 3

    def noise(self, layer, name) -> Halving:
        return Halving()


@optimizer("nesterov")
def nesterov(groups, train):
    return torch.optim.SGD(groups, train.lr, momentum=train.momentum, nesterov=True)
'''
CHOICES = ["import=own", "model=elman", "dataset=symbols", "method=half", "train.optimizer=nesterov"]
SHORT = [*CHOICES, "train.epochs=6", "train.lr=0.2", "train.batch_size=10"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_one_module_of_ones_own_brings_model_data_task_method_and_optimizer(svdo_run: Command, own: Path) -> None:
    done = svdo_run(*SHORT, "model.width=20")
    assert done.returncode == 0, done.stderr
    (path,) = own.rglob("result.json")
    record = json.loads(path.read_text())
    assert (record["model"], record["dataset"], record["method"], record["task"]) == ("elman", "symbols", "half", "echo")
    assert record["headline"] == {"name": "hits", "unit": "%", "better": "higher"}
    assert record["config"]["model"] == {"name": "elman", "dropout": {}, "width": 20}
    assert set(record["config"]["imports"]) == {"own"}
    assert record["test"]["hits"] > 90, "the state is handed on from piece to piece, so nearly all can be known"
    assert 1.9 < record["compression"] < 2.1
    lines = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["test_hits"] == record["test"]["hits"] and lines[-1]["train_hits"] > 80
    assert "N = 400" not in done.stdout, "it has no KL"
    assert f"test hits {record['test']['hits']:.2f} %" in done.stdout


def test_ones_own_choices_sweep_and_are_checked_like_the_packages(svdo_run: Command, own: Path) -> None:
    done = svdo_run("-m", *SHORT, "model.width=8,9", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "2 done, 0 skipped, 0 failed" in done.stdout and "test hits %" in done.stdout
    for mistake, said in {"model.width=x": "model.width", "model.widht=3": "width", "method=halv": "half"}.items():
        refused = svdo_run(*SHORT, mistake)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert said in refused.stderr


def test_a_run_of_other_source_is_not_taken_for_done(svdo_run: Command, own: Path) -> None:
    assert svdo_run(*SHORT, "train.epochs=1").returncode == 0
    assert "is done" in svdo_run(*SHORT, "train.epochs=1").stdout
    (own / "own.py").write_text(OWN.replace("median()", "mean()"))
    changed = svdo_run(*SHORT, "train.epochs=1")
    assert (changed.returncode, len(changed.stderr.splitlines())) == (2, 1), changed.stderr
    assert "own has changed" in changed.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "import=own failed: ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        (OWN.replace('name: str = "half"', 'name: str = "sparsevd"'), "the name sparsevd is taken"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_mistake(
    svdo_run: Command, tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    done = svdo_run("import=own", "model=mlp")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "results").exists()
