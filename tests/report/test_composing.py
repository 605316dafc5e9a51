"""Configurations of tables, composed without Hydra where that is safe, are those that Hydra composes."""

import pytest
from hydra.errors import HydraException

from svdo.cli import compose as by_hydra
from svdo.errors import UserError
from svdo.report import composing, spec
from svdo.report import evidence as evidences


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])  # all take Hydra half a minute
def test_the_runs_of_all_reports_are_those_that_hydra_composes(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = {}, []
    quick = composing.compose
    monkeypatch.setattr(composing, "composed_by_hydra", lambda items: whole.append(tuple(items)) or by_hydra.compose(items))
    monkeypatch.setattr(evidences, "compose", lambda items: seen.setdefault(tuple(items), quick(items)))
    for name in spec.names():
        evidences.gather(spec.load(name))
    assert len(set(whole)) < len(seen) / 4  # Hydra composes choices, not runs
    for overrides, config in list(seen.items())[::every]:
        wanted = by_hydra.compose(overrides)
        assert (config.id, repr(config)) == (wanted.id, repr(wanted)), overrides


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=vd_a", "method=vd_b"],
        ["model=mlp", "method=vd_a2", "model.width=300", "train.lr=1", "results_dir=2017", "seed=3"],
        ["method=binary", "method.rates={fc1:0.3,fc2:0}", "model=lenet300", "train=dense", "++seed=4"],
        ["method=binary", "model=lenet5", "model.dropout={fc1:0.1}", "train.averaging=0.5", "pretrained='a b'"],
        [
            "train.lr=2e-4",
            "train=fast",
            "model=lenet300",
            "runtime.progress=false",
            "dataset=fashion_mnist",
            "seed=1",
            "seed=2",
        ],
        ["model=convnet", "method=gaussian_a", "method.rates.conv1=0.25", "train.best_epoch=true", "dataset.validation=5000"],
    ],
)
def test_other_runs_are_the_same_too(overrides: list[str]) -> None:
    config, wanted = composing.compose(overrides), by_hydra.compose(overrides)
    assert (config.id, repr(config), config.as_dict()) == (wanted.id, repr(wanted), wanted.as_dict())


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=-1"],
        ["seed=1.5"],
        ["seed=true"],
        ["seed=1,2"],
        ["train.lr=fast"],
        ["train.epochs=1.0"],
        ["method=vd_c"],
        ["method.thresh=1"],
        ["model.name=mlp"],
        ["dataset=cifar11"],
        ["model=mlp", "method=sparsevd", "dataset.validation=100", "train.best_epoch=true"],
        ["method=binary", "method.rates={fc1:2}"],
        ["method=binary", "method.rates={fc1:much}"],
        ["seed"],
        ["~seed"],
    ],
)
def test_what_hydra_refuses_is_refused_in_the_same_words(overrides: list[str]) -> None:
    with pytest.raises((UserError, HydraException)) as wanted:
        by_hydra.compose(overrides)
    with pytest.raises(type(wanted.value)) as found:
        composing.compose(overrides)
    assert str(found.value) == str(wanted.value)


def test_what_is_composed_may_be_changed_without_changing_what_is_composed_next() -> None:
    overrides = ["model=lenet300", "method=binary", "train=dense"]
    first = composing.compose(overrides)
    first.method.rates["fc1"] = 0.9
    first.train.lr = 7.0
    assert repr(composing.compose(overrides)) == repr(by_hydra.compose(overrides))
    with pytest.raises(UserError):
        composing.compose([*overrides, "train.lr=-1"])
