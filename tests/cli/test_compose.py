"""From conf/ and overrides to a checked configuration: every choice composes, every mistake gets one line."""

import itertools
from pathlib import Path

import pytest
import svdo.conf
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svdo.cli.compose import compose, explain
from svdo.config import Config
from svdo.data import ImageDataset
from svdo.errors import UserError
from svdo.methods import METHODS, DropoutMethod
from svdo.models.mlp import MLP
from svdo.report import spec
from svdo.tasks.classification import Classification

CONF = Path(next(iter(svdo.conf.__path__)))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


PAIRS = [(train, model) for train in options("train") for model in options(f"train/{train}")]
# Groups compose independently, so not the whole product: every model, data set and training meets, methods take turns.
CHOICES = [
    (model, dataset, train, method)
    for ((train, model), dataset), method in zip(
        itertools.product(PAIRS, options("dataset")), itertools.cycle(METHODS), strict=False
    )
]


def refusal(*overrides: str) -> str:
    """What ``svdo-run`` prints behind "svdo: " for a mistake, as ``cli.exit_status`` words it."""
    try:
        config = compose(overrides)
    except UserError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explain(error)
    raise AssertionError(f"{overrides} composed, as {config.id}")


def test_the_choices_below_cover_every_option_of_every_group() -> None:
    assert {choice[0] for choice in CHOICES} == set(options("model"))
    assert {choice[1] for choice in CHOICES} == set(options("dataset"))
    assert {choice[2] for choice in CHOICES} == set(options("train"))
    assert {choice[3] for choice in CHOICES} == set(METHODS)


def test_every_model_data_set_and_training_compose_with_each_other_and_give_different_runs() -> None:
    configs = [
        compose([f"model={model}", f"dataset={dataset}", f"train={train}", f"method={method}"])
        for model, dataset, train, method in CHOICES
    ]
    assert [(c.model.name, c.dataset.name, c.method.name) for c in configs] == [(m, d, n) for m, d, _, n in CHOICES]
    assert len({config.id for config in configs}) == len(CHOICES)


def test_every_file_of_conf_is_reachable_as_a_choice() -> None:
    reachable = {"config.yaml", *(f"report/{name}.yaml" for name in spec.names())}
    reachable |= {f"{group}/{name}.yaml" for group in ("model", "dataset", "runtime", "train") for name in options(group)}
    reachable |= {f"train/{train}/{model}.yaml" for train, model in PAIRS if model in options("model")}
    assert {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")} == reachable


def test_the_help_names_every_choice() -> None:
    text = (CONF / "config.yaml").read_text()
    for group, names in (("model", options("model")), ("method", sorted(METHODS)), ("dataset", options("dataset"))):
        assert f" {group}: {', '.join(names)}\n" in text
    authors, dense, fast = (set(options(f"train/{name}")) for name in ("authors", "dense", "fast"))
    (without,) = authors - dense
    line = f"authors; dense (for methods without a KL; not {without}); fast (for the others; {', '.join(sorted(fast))})"
    assert f" train: {line}\n" in text
    assert options("train") == ["authors", "dense", "fast"]


def test_conf_is_data_and_names_no_code() -> None:
    def targets(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [str(node["_target_"])] if "_target_" in node else []
            return own + [t for value in node.values() for t in targets(value)]
        return [t for value in node for t in targets(value)] if isinstance(node, list) else []

    found = {str(path.relative_to(CONF)): OmegaConf.load(path) for path in CONF.rglob("*.yaml")}
    assert all(isinstance(node, DictConfig) for node in found.values())
    named = {name: targets(OmegaConf.to_container(node)) for name, node in found.items()}
    assert not {name: names for name, names in named.items() if names}


MODELS = ", ".join(options("model"))
MISTAKES = {
    "metod=sparsevd": ["unknown key metod", "did you mean method?"],
    "+method.x=1": ["unknown key method.x", "method has: log_sigma2, threshold"],
    "method=sparsvd": ["method=sparsvd is not a choice", ", ".join(sorted(METHODS))],
    "model=lenet": ["model=lenet is not a choice", MODELS],
    "dataset=cifar": ["dataset=cifar is not a choice", ", ".join(options("dataset"))],
    "train=slow": ["train=slow is not a choice", ", ".join(options("train"))],
    "train.epochs=-1": ["train.epochs=-1", "at least 0"],
    "train.epochs=ten": ["train.epochs", "'ten'", "Integer"],
    "train.lr=nan": ["train.lr=nan"],
    "train.kl_start=0.9": ["train.kl_start must not exceed train.kl_full"],
    "train.kl_settled=0.05": ["train.kl_full must not exceed train.kl_settled"],
    "train.kl_peak=0.5": ["train.kl_peak=0.5 is out of range", "at least 1"],
    "train.kl_weight=-1": ["train.kl_weight=-1", "at least 0"],
    "method.threshold=1000": ["method.threshold=1000", "between -80.0 and 80.0"],
    "method.log_sigma2=nan": ["method.log_sigma2=nan", "between -80.0 and 80.0"],
    "model=vgg model.k=nan": ["model.k=nan", "at least 1/64"],
    "model=convnet model.k=inf": ["model.k=inf", "at least 1/32"],
    "model=???": ["model"],
    "model=mlp model.start_std=-1": ["model.start_std=-1"],
    "train.epoch=3": ["unknown key train.epoch", "did you mean train.epochs?"],
    "+foo=1": ["unknown key foo"],
    "~seed": ["seed is missing"],
    "~method": ["method is missing"],
    "seed=-1": ["seed=-1", "between 0 and"],
    "seed=x": ["seed=x is not of type int"],
    "model.dropout=3": ["model.dropout"],
    "runtime.precision=fp16": ["runtime.precision=fp16 is not a choice", "fp32, bf16_variance, bf16, auto"],
    "dataset.random_labels=2": ["dataset.random_labels=2", "between 0.0 and 1.0"],
    "model.k=2 model=lenet300": ["unknown key model.k", "the chosen model has no such setting"],
    "method.rates={fc1:1.0} method=binary": ["method.rates[fc1]=1.0", "[0, 1)"],
    "model=lenet5 train.best_epoch=true": ["train.best_epoch=true", "dataset.validation=10000"],
    "method=sws train.best_epoch=true dataset.validation=9": ["before method=sws has removed its weights"],
    "train.averaging=1": ["train.averaging=1", "[0, 1)"],
    "train=fast model=convnet": ["train/fast=convnet is not a choice", ", ".join(options("train/fast"))],
    "seed=0,1": ["seed=0,1", "svdo-run -m"],
    "method=pruning method.quality={fc1:inf}": ["method.quality[fc1]=inf is not a finite number"],
    "method=dns method.gamma=inf": ["method.gamma=inf is not a finite number"],
    "train.weight_decay=inf": ["train.weight_decay=inf is not a finite number"],
    "method=dns method.crispness={fc1:{a:1}}": ["method.crispness[fc1]={'a': 1} is not of type number"],
    "model.dropout={fc1:{a:1}}": ["model.dropout[fc1]={'a': 1} is not of type number"],
    "model=mlp model.dropout={fc9:0.3}": ["model.dropout has no fc9", "+model.dropout.fc9="],
    "method.threshold=abc": ["method.threshold", "'abc'", "Float"],
    "pretrained=some/run": ["pretrained=some/run", "the name of its folder"],
    "dataset.name=cifar10": ["dataset.name=cifar10 would mix two choices", "write dataset=cifar10"],
    "model.name=lenet300": ["write model=lenet300"],
    "method.name=vd_b": ["write method=vd_b"],
    "~train.lr": ["train.lr is missing"],
    "train.epochs=???": ["train.epochs", "Missing"],
    "method.threshold=${nope}": ["method.threshold: ", "nope"],
    "dataset.crop=99": ["dataset.crop=99", "between 0 and 28"],
    "runtime.threads=99999999999": ["runtime.threads=99999999999", "between 0 and 1024"],
    "results_dir=": ["results_dir is empty"],
    "data_dir=": ["data_dir is empty"],
    "seed": ["seed"],
    "method.train_clip=3": ["method.train_clip=3 is neither true nor false"],
    "method.train_clip='true'": ["method.train_clip=true is neither true nor false"],
    "train.per_epoch=0": ["train.per_epoch=0 is neither"],
    "dataset.flip=yes": ["dataset.flip=yes is neither"],
    "runtime.progress=null": ["runtime.progress=None is neither"],
    "dataset.subset=60001": ["dataset.subset=60001 exceeds the 60000 training images", "0 takes all"],
    "dataset.validation=10000 dataset.subset=50001": ["exceeds the 50000 training images beside dataset.validation=10000"],
    "dataset=cifar10 dataset.test_subset=10001": ["dataset.test_subset=10001 exceeds the 10000 test images"],
    "dataset.validation=60000": ["leaves no training image of 60000"],
    "model=mlp model.depth=1000000000": ["model.depth=1000000000 is out of range"],
    "model=mlp model.width=1000000000000000000000": ["model.width=1000000000000000000000 is too large"],
    "model=vgg model.k=1e300": ["model.k=1e+300 is too large"],
    "train.lr=1e39": ["train.lr=1e+39 is too large"],
    "runtime.snapshots=99999999999999999999": ["runtime.snapshots=99999999999999999999 is too large"],
    "method=sws method.components=1000000000": ["method.components=1000000000 is out of range", "between 1 and 256"],
    "hydra/launcher=joblib": ["hydra/launcher=joblib is for svdo-run alone"],
    "+hydra.x=1": ["+hydra.x=1 is for svdo-run alone"],
    "~hydra.run": ["~hydra.run is for svdo-run alone"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_line_that_names_it_and_the_choices(line: str) -> None:
    message = refusal(*line.split())
    assert len(message.splitlines()) == 1, message
    for part in MISTAKES[line]:
        assert part in message
    assert "Traceback" not in message
    assert "train.train" not in message


def test_a_folder_may_be_called_like_a_number() -> None:
    assert compose(["results_dir=2024_06_01"]).results_dir == "2024_06_01"
    assert compose(["results_dir=1e3", "data_dir=2017"]).results_dir == "1e3"


def test_composing_again_after_a_mistake_is_not_disturbed_by_it() -> None:
    before = compose(["model=lenet300"]).id
    refusal("model=lenet300", "metod=x")
    assert compose(["model=lenet300"]).id == before


def test_the_order_of_overrides_names_the_same_run() -> None:
    overrides = ["model=lenet300", "method=binary", "train.epochs=3", "seed=2"]
    assert len({compose(list(order)).id for order in itertools.permutations(overrides, 4)}) == 1


def test_a_value_spelt_differently_or_spelt_out_names_the_same_run() -> None:
    assert compose(["train.lr=1e-3"]).id == compose(["train.lr=0.001"]).id == compose([]).id
    assert compose(["method.threshold=3"]).id == compose(["method.threshold=3.0"]).id == compose([]).id


def test_rates_in_another_order_are_another_run_where_patterns_overlap() -> None:
    first = compose(["model=lenet300", "method=binary", "method.rates={fc?:0.5,fc1:0.2}"])
    second = compose(["model=lenet300", "method=binary", "method.rates={fc1:0.2,fc?:0.5}"])
    assert first.method.rate("fc1") != second.method.rate("fc1")  # type: ignore[attr-defined]
    assert first.id != second.id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1.5",
        "seed=true",
        "results_dir=null",
        "pretrained=null",
        "seed=99999999999999",
        "train.momentum=1.0",
        "train.lr=inf",
    ],
)
def test_impossible_values_are_refused(override: str) -> None:
    with pytest.raises(UserError):
        compose([override])


@pytest.mark.parametrize(
    ("override", "message"),
    [("results_dir=~/x", "quote a value with special characters, for the shell too: 'results_dir=\"~/x\"'"),
     ("method.rates={fc[12]:0.3}", r"'method.rates={fc\[12\]:0.3}'"),
     ("method.rates={fc!:0.3}", r"patterns being made of letters, digits, . * ? and \[ \]"),
     ("seed", "seed is not key=value")],
)  # fmt: skip
def test_an_override_that_cannot_be_read_says_how_to_write_it(override: str, message: str) -> None:
    assert message in refusal(override)


@pytest.mark.parametrize("override", ["method.rates={fc[12]:0.3}", "method.rates={fc[1-3]:0.3,fc[4]:0}", "results_dir=~/x;y"])
def test_the_hint_is_accepted_itself(override: str) -> None:
    (_, hint, _) = refusal("model=mlp", "method=binary", override).split("'")
    config = compose(["model=mlp", "method=binary", hint])
    if isinstance(config.method, DropoutMethod):
        assert override.startswith("results_dir") or config.method.rate("fc1") == 0.3


def test_whoever_has_no_home_needs_none_for_bundled_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert ImageDataset().name == "mnist"
    Config(MLP(), ImageDataset(), METHODS["none"](), Classification(), results_dir=Config.results_dir).check()
    with pytest.raises(UserError, match="data_dir=~/y: there is no home folder"):
        Config(MLP(), ImageDataset(), METHODS["none"](), Classification(), data_dir="~/y").check()
