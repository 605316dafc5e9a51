"""A run's identity, and that everything in conf/ composes."""

import itertools
import json
from pathlib import Path

import pytest
import svdo.conf
from omegaconf import OmegaConf

from svdo.cli.compose import compose
from svdo.methods import METHODS
from svdo.models import MODELS

GOLDEN = json.loads(Path(__file__).with_name("golden_ids.json").read_text())
CONF = Path(next(iter(svdo.conf.__path__)))


@pytest.mark.parametrize("line", GOLDEN)
def test_an_id_is_what_it_always_was(line: str) -> None:
    assert compose(line.split()).id == GOLDEN[line], (
        "this changes the identity of runs that users have: every record of theirs is orphaned. If a default had to change, "
        "say so in the commit and write the new id into golden_ids.json"
    )


@pytest.mark.parametrize(
    "same", ["runtime.device=cpu", "runtime.precision=bf16", "results_dir=x", "data_dir=x", "model.dropout={fc1:0.3}"]
)
def test_how_and_where_a_run_is_computed_is_no_part_of_it(same: str) -> None:
    assert compose([same]).id == compose([]).id


@pytest.mark.parametrize(
    "other", ["seed=1", "train.epochs=3", "dataset.validation=5", "method.threshold=2.5", "pretrained=x", "model=mlp"]
)
def test_what_a_run_computes_is(other: str) -> None:
    assert compose([other]).id != compose([]).id


def test_a_dropout_method_takes_the_rates_of_its_model_and_they_count() -> None:
    config = compose(["model=lenet300", "method=binary"])
    assert config.method.rates == {"fc1": 0.2, "fc2": 0.5, "fc3": 0.5}  # type: ignore[attr-defined]
    assert compose(["model=lenet300", "method=binary", "model.dropout={fc1:0.3}"]).id != config.id
    assert compose(["model=lenet300", "method=binary", "method.rates={fc1:0.2,fc2:0.5,fc3:0.5}"]).id == config.id


def test_the_authors_setting_is_the_default_on_both_lenets() -> None:
    for model, flat in (("lenet300", 0.5), ("lenet5", 0.0)):
        train = compose([f"model={model}"]).train
        assert (train.epochs, train.batch_size, train.optimizer, train.lr) == (200, 100, "adam", 1e-3)
        assert (train.lr_flat, train.kl_start * 200, train.kl_full * 200) == (flat, 5, 20)


def test_a_model_brings_its_data_set_unless_told_otherwise() -> None:
    assert compose(["model=vgg"]).dataset.name == "cifar10"
    assert compose(["model=vgg", "dataset=cifar100"]).dataset.name == "cifar100"
    assert compose(["dataset=fashion_mnist", "model=vgg"]).dataset.name == "fashion_mnist"
    assert compose(["model=lenet5"]).dataset.name == "mnist"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_every_model_and_method_is_a_choice() -> None:
    assert options("model") == sorted(MODELS)
    for model, method in itertools.product(MODELS, METHODS):
        config = compose([f"model={model}", f"method={method}"])
        assert (config.model.name, config.method.name) == (model, method)


def test_every_data_set_composes() -> None:
    for name in options("dataset"):
        assert compose([f"dataset={name}"]).dataset.name == name


def test_every_training_composes_with_its_models() -> None:
    for train in options("train"):
        for model in options(f"train/{train}"):
            assert compose([f"train={train}", f"model={model}"]).train.epochs > 0


def test_every_yaml_file_is_a_mapping() -> None:
    for path in CONF.rglob("*.yaml"):
        assert OmegaConf.load(path), path


def test_the_id_of_every_committed_record_is_what_its_settings_give() -> None:
    """The whole of Hydra composes the golden ids above; a hundred more take it too long."""
    from svdo.report.composing import compose as composed

    lines = json.loads(Path(__file__).with_name("golden_records.json").read_text())
    assert {line: composed(line.split()).id for line in lines} == lines
