"""How long a run will take."""

from pathlib import Path
from typing import Any

import pytest
from reporting import put, record

from svdo.cli.compose import compose
from svdo.report.expected import Expected, expected
from svdo.report.records import finished


def test_a_damaged_record_of_another_run_does_not_stop_a_plan(tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "result.json").write_text('{"id": 1')
    assert expected(compose([]), list(finished(tmp_path))) is None


def test_a_width_that_was_never_trained_is_timed_by_its_weights(tmp_path: Path) -> None:
    old = record(("model=mlp", "model.width=100", "method=none"), 1.0, 1.0, weights=99_400)
    del old["config"]["dataset"]["test_subset"], old["config"]["model"]["start_std"]  # settings that it does not know
    put(tmp_path, old)
    seconds = [
        expected(compose(["model=mlp", f"model.width={width}", "method=binary"]), list(finished(tmp_path))).seconds
        for width in (100, 200)
    ]
    # A minute on two threads.
    assert seconds == [120.0, pytest.approx(120.0 * (784 * 200 + 2 * 200**2 + 2000) / 99_400)]
    assert expected(compose(["model=mlp", "method=binary"]), list(finished(tmp_path)), "cuda") is None
    sparse = record(("model=mlp", "model.width=50", "method=sparsevd", "train.epochs=1"), 1.0, 1.0, weights=44_700)
    put(tmp_path, sparse | {"seconds": 200.0})
    wanted = compose(["model=mlp", "model.width=100", "method=sparsevd", "train.epochs=1"])
    assert expected(wanted, list(finished(tmp_path))).seconds == pytest.approx(400.0 * 99_400 / 44_700)  # by its method


def test_runs_of_the_same_precision_count_alone_whatever_their_threads() -> None:
    def made(threads: int, precision: str, seconds: float, **more: float) -> dict[str, Any]:
        found = record(("model=lenet300", "method=sparsevd", "train=fast"), 1.0, 1.0)
        provenance = {**found["provenance"], "threads": threads, "precision": precision}
        return {**found, "seconds": seconds, "provenance": provenance, **more}

    config = compose(["model=lenet300", "method=sparsevd", "train=fast"])
    records = [made(1, "fp32", 60.0), made(2, "fp32", 40.0), made(4, "fp32", 50.0, core_seconds=70.0), made(1, "bf16", 20.0)]
    assert expected(config, records, "cpu", "fp32") == Expected(70.0, 3, ("fp32",))
    assert str(expected(config, records, "cpu", "bf16")) == "0.3 core-minutes, from 1 run, bf16"
    assert str(expected(config, records[:3], "cpu", "bf16")) == "1.2 core-minutes, from 3 runs, fp32"
    assert expected(config, records).precisions == ("bf16", "fp32")
    gpu = {**made(8, "bf16", 30.0), "provenance": {**records[0]["provenance"], "device": "NVIDIA", "threads": 8}}
    assert str(expected(config, [*records, gpu], "cuda", "fp32")) == "0.5 minutes on a GPU, from 1 run, fp32"
