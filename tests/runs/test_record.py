"""Records are read through one door, which lets nothing through that is not what was written."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

import svdo
from svdo.cli.compose import compose
from svdo.runs import record

RESULTS = Path(svdo.__file__).parent.parent / "results" / "runs"
COMMITTED = sorted(RESULTS.glob("*/result.json"))


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """A committed record with nearly every key there is."""
    return max((json.loads(path.read_bytes()) for path in COMMITTED), key=lambda found: len(str(found)))


def test_every_committed_record_passes_and_gives_its_configuration() -> None:
    assert COMMITTED
    for path in COMMITTED:
        found = record.parse(path.read_bytes(), path.parent.name)
        assert record.config_of(found).id == path.parent.name
        lines = record.parse_epochs((path.parent / "metrics.jsonl").read_bytes(), found)
        assert len(lines) == found["epochs"]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in nested containers something stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*above, key), *places(item, (*above, key)))]


def changed(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(content)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


def refusal(content: dict[str, Any], id: str) -> str:
    with pytest.raises(ValueError, match=r".+") as raised:
        record.parse(json.dumps(content), id)
    return str(raised.value)


def test_no_value_may_be_of_another_type(kept: dict[str, Any]) -> None:
    for place in places(kept):
        if place[-1] in ("commit", "host_cores", "storage", "rate") or place[:2] == ("config", "runtime"):
            continue  # of these some other values are right, too
        value: Any = kept
        for key in place:
            value = value[key]
        for wrong in ([], {}, True, "1e3"):
            if type(wrong) is type(value):
                continue
            assert refusal(changed(kept, place, wrong), kept["id"]), (place, wrong)


@pytest.mark.parametrize("key", ["test", "train"])
@pytest.mark.parametrize(
    ("name", "value"), [("error", 980.0), ("error", -1.0), ("nll", -0.1), ("ece", 101), ("brier", 2.1), ("nll", True)]
)
def test_a_metric_out_of_range_is_named(kept: dict[str, Any], key: str, name: str, value: float) -> None:
    assert f"{key}.{name} is" in refusal(changed(kept, (key, name), value), kept["id"])


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_what_is_no_finite_number_is_refused(kept: dict[str, Any], token: str) -> None:
    text = json.dumps(kept).replace(f'"seconds": {kept["seconds"]}', f'"seconds": {token}')
    with pytest.raises(ValueError, match=r"number|holds"):
        record.parse(text, kept["id"])


def test_every_key_that_is_renamed_is_named(kept: dict[str, Any]) -> None:
    for place in places(kept):
        if not isinstance(place[-1], str) or place[1:-1] in (("model", "dropout"), ("method", "rates")):
            continue  # patterns of layers' names
        inner: Any = kept
        for key in place[:-1]:
            inner = inner[key]
        renamed = {("x" + key if key == place[-1] else key): value for key, value in inner.items()}
        whole = changed(kept, place[:-1], renamed) if place[:-1] else renamed
        said = refusal(whole, kept["id"])
        assert place[-1] in said or "in config None" in said or "is not the record" in said, (place, said)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("nonzero",), 1, "nonzero is 1, and the counts give"),
        (("sparsity",), 1.5, "sparsity is 1.5, and the counts give"),
        (("compression",), 3.0, "compression is 3.0, and the counts give"),
        (("compression",), None, "compression is None"),
        (("layers", 0, "sparsity"), 12.5, "sparsity of layer"),
        (("layers", 0, "nonzero"), 10**9, "keeps more than its"),
        (("seed",), 3, "seed is 3, in config 0"),
        (("config", "train", "lr"), 0.5, "config gives the id"),
        (("config", "train", "epohcs"), 5, "config.train.epohcs is no setting"),
        (("config", "train", "lr"), "0.001", "config.train.lr is"),
        (("schema",), 2, "schema is not 1"),
        (("surprise",), 2, "surprise is no key"),
        (("best_epoch",), 10**6, "comes after the last epoch"),
    ],
)
def test_figures_that_contradict_each_other_are_named(kept: dict[str, Any], place: Any, value: Any, said: str) -> None:
    zero = {**kept, "seed": 0, "config": {**kept["config"], "seed": 0}, "id": kept["id"]}
    assert said in refusal(changed(zero if said.startswith("seed") else kept, place, value), kept["id"])


def test_a_key_that_stands_twice_is_refused(kept: dict[str, Any]) -> None:
    text = json.dumps(kept)
    with pytest.raises(ValueError, match="stands twice"):
        record.parse(text[:-1] + ', "epochs": 3}', kept["id"])


def test_any_flipped_bit_of_a_sealed_record_is_noticed_or_changes_nothing(kept: dict[str, Any]) -> None:
    sealed = record.seal(kept)
    assert list(sealed)[-1] == "sha256"
    content = json.dumps(sealed, indent=1).encode()
    assert record.parse(content, kept["id"]) == sealed
    chance = random.Random(0)
    for place in chance.sample(range(len(content)), 600):
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        try:
            found = record.parse(bytes(flipped), kept["id"])
        except ValueError:
            continue
        assert found == sealed


def test_a_record_is_not_sealed_that_reading_would_refuse(kept: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="error is"):
        record.seal(changed(kept, ("test", "error"), 101.0))


def test_a_method_that_is_not_known_here_leaves_its_settings_unchecked(kept: dict[str, Any]) -> None:
    own = json.loads(json.dumps(kept))
    own["method"] = own["config"]["method"]["name"] = "mine"
    own["config"]["method"]["strength"] = 2.0
    own["id"] = f"{own['model']}-{own['dataset']}-mine-s{own['seed']}-0123456789"
    assert record.parse(json.dumps(own), own["id"])["method"] == "mine"
    assert "ten hexadecimal digits" in refusal({**own, "id": own["id"] + "0"}, own["id"] + "0")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("epoch",), 3, "line 2: it says epoch 3"),
        (("train_error",), 980.0, "line 2: train_error is"),
        (("kl",), "x", "line 2: kl is"),
        (("compression",), 0.5, "line 2: compression is"),
        (("sparsity",), {"other": 1.0}, "its layers are not"),
        (("lerning",), 1.0, "line 2: lerning is no key"),
    ],
)
def test_a_damaged_epoch_is_named(place: Any, value: Any, said: str) -> None:
    path = COMMITTED[0]
    found = record.parse(path.read_bytes(), path.parent.name)
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    lines[1] = changed(lines[1], place, value)
    with pytest.raises(ValueError, match=said):
        record.parse_epochs("\n".join(map(json.dumps, lines)).encode(), found)


def test_the_epochs_of_another_run_are_not_those_of_the_record() -> None:
    contents = [(path.parent / "metrics.jsonl").read_bytes() for path in COMMITTED]
    for path, other in zip(COMMITTED, [*contents[1:], contents[0]], strict=True):
        with pytest.raises(ValueError, match="record"):
            record.parse_epochs(other, record.parse(path.read_bytes(), path.parent.name))


def test_a_configuration_comes_back_from_a_record_of_now(tmp_path: Path) -> None:
    config = compose(["model=lenet5", "method=vd_a", "train=fast", "seed=4", "method.rates={fc*:0.5}"])
    found = record.config_of({"config": config.as_dict(), "model": "lenet5", "method": "vd_a", "dataset": "mnist"})
    assert (found.id, found.as_dict()) == (config.id, config.as_dict())
