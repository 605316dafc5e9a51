"""How long a run will take."""

from pathlib import Path

import pytest
from reporting import put, record

from svdo.cli.compose import compose
from svdo.report.expected import expected_seconds
from svdo.runs import finished


def test_a_damaged_record_of_another_run_does_not_stop_a_plan(tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "result.json").write_text('{"id": 1')
    assert expected_seconds(compose([]), list(finished(tmp_path))) is None


def test_a_width_that_was_never_trained_is_timed_by_its_weights(tmp_path: Path) -> None:
    old = {**record(("model=mlp", "model.width=100", "method=none"), 1.0, 1.0), "weights": 99_400}
    del old["config"]["dataset"]["test_subset"], old["config"]["model"]["start_std"]  # settings that it does not know
    put(tmp_path, old)
    seconds = [
        expected_seconds(compose(["model=mlp", f"model.width={width}", "method=binary"]), list(finished(tmp_path)))
        for width in (100, 200)
    ]
    assert seconds == [60.0, pytest.approx(60.0 * (784 * 200 + 2 * 200**2 + 2000) / 99_400)]
    assert expected_seconds(compose(["model=mlp", "method=binary"]), list(finished(tmp_path)), "cuda") is None
    sparse = {**record(("model=mlp", "model.width=50", "method=sparsevd"), 1.0, 1.0), "weights": 44_700, "seconds": 200.0}
    put(tmp_path, sparse | {"epochs": 1})
    wanted = compose(["model=mlp", "model.width=100", "method=sparsevd", "train.epochs=1"])
    assert expected_seconds(wanted, list(finished(tmp_path))) == pytest.approx(200.0 * 99_400 / 44_700)  # by its method
