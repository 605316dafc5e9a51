"""A run that is interrupted, however rudely, ends with the record it would have had."""

import contextlib
import dataclasses
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, start

from svdo import train
from svdo.cli.compose import compose
from svdo.config import Config
from svdo.errors import UserError
from svdo.runs import Run, checkpoint
from svdo.tasks.classification import Classification
from svdo.train import execute, loop

# 600 steps an epoch: about a second, long enough to hit
RUN = [*SMALL, "dataset.subset=12000", "dataset.validation=500", "train.averaging=0.99"]


def measured(folder: Path, config: Config | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record and the epochs of RUN or another run, without times and provenance."""
    run = Run(folder / "results", (config or compose(RUN)).id)
    record = run.result()
    assert record is not None
    epochs = run.epochs()
    for item in (record, *epochs):
        del item["seconds"]
    for key in ("core_seconds", "provenance", "sha256"):
        del record[key]
    del record["files"]["metrics.jsonl"]  # it has the seconds
    return record, epochs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an uninterrupted run measures."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, *RUN).wait(timeout=240) == 0
    return measured(folder)


def wait_for_epoch(process: "subprocess.Popen[str]", folder: Path, epochs: int) -> None:
    """Until so many epochs are over; then a moment into the next one."""
    run = Run(folder / "results", compose(RUN).id)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if run.checkpoint.exists() and len(run.epochs()) >= epochs:
            time.sleep(random.uniform(0.1, 0.5))
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended early: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, whole: Any, number: signal.Signals) -> None:
    process = start(tmp_path, *RUN)
    wait_for_epoch(process, tmp_path, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert Run(tmp_path / "results", compose(RUN).id).result() is None
    if number != signal.SIGKILL:
        assert err.splitlines()[-1].endswith("repeat the command to go on")
    process = start(tmp_path, *RUN)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "resuming at epoch" in out
    assert measured(tmp_path) == whole
    assert not [path for path in tmp_path.rglob("*") if path.name in ("checkpoint.pt", "outputs") or path.suffix == ".tmp"]


def test_a_stop_while_an_epoch_is_evaluated_waits_until_that_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*SMALL, f"results_dir={tmp_path / 'results'}"])
    real = Classification.evaluate

    def stopped(*arguments: Any, **options: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(Classification, "evaluate", stopped)
    with pytest.raises(train.Interrupted, match="saved after epoch 1;"):
        execute(config)
    assert [line["epoch"] for line in Run(config.results_dir, config.id).epochs()] == [1]
    monkeypatch.undo()
    execute(config)
    found = measured(tmp_path, config)
    execute(compose([*SMALL, f"results_dir={tmp_path / 'other' / 'results'}"]))
    assert measured(tmp_path / "other", config) == found


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    config = compose([*SMALL, "train.epochs=0", f"results_dir={tmp_path}"])
    run = Run(tmp_path, config.id)
    run.folder.mkdir(parents=True)
    (run.folder / ".checkpoint.pt.12345.tmp").write_bytes(b"half")
    execute(config)
    assert sorted(path.name for path in run.folder.iterdir()) == ["lock", "result.json", "weights.pt"]


def test_a_record_names_every_origin_of_a_run_that_went_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*SMALL, "dataset.subset=400", f"results_dir={tmp_path}", "runtime.threads=1"])
    origin = {"commit": "1" * 40, "threads": 1, "device": "cpu", "started": "then"}
    origin |= {"torch": "2", "python": "3", "precision": "fp32", "compile": False, "host_cores": 2}
    monkeypatch.setattr(loop.machine, "provenance", lambda runtime, device, started: dict(origin, started=started))

    def stopped_after(steps: int) -> None:
        stop = train.Stop(number=signal.SIGTERM) if steps else train.Stop()
        training = train.Training(config, Run(tmp_path, config.id), stop)
        training.run.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(train.Interrupted):
            training.finish()

    stopped_after(1)
    stopped_after(1)  # the same origin again is not another one
    origin |= {"commit": "2" * 40}
    config.runtime.threads = 2
    stopped_after(0)
    record = Run(tmp_path, config.id).result()
    assert record is not None
    assert record["provenance"]["commit"] == "2" * 40
    (earlier,) = record["provenance"]["earlier"]
    assert earlier["commit"] == "1" * 40
    assert record["provenance"]["started"] == earlier["started"]
    assert record["seconds"] < record["core_seconds"] < 2 * record["seconds"]


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_the_records_of_one_that_was_not(tmp_path: Path) -> None:
    small = [*SMALL, "dataset.subset=6000"]
    sweep = ["-m", *small, "method=binary,sparsevd", "model.width=8,16"]
    found = []
    for name, kills in (("whole", 0), ("killed", 2)):
        folder = tmp_path / name
        folder.mkdir()
        for _ in range(kills):
            process = start(folder, *sweep)
            records = len(list(folder.rglob("result.json")))
            while process.poll() is None and len(list(folder.rglob("result.json"))) == records:
                time.sleep(0.01)
            time.sleep(random.uniform(0.1, 1.0))  # somewhere in the next run
            process.kill()
            assert process.wait() == -signal.SIGKILL
        process = start(folder, *sweep)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "0 failed" in out
        configs = [compose([*small, f"method={m}", f"model.width={w}"]) for m in ("binary", "sparsevd") for w in (8, 16)]
        found.append([measured(folder, config) for config in configs])
    assert found[0] == found[1]


def test_of_two_processes_one_trains_and_the_other_waits(tmp_path: Path, whole: Any) -> None:
    first = start(tmp_path, *RUN)
    wait_for_epoch(first, tmp_path, 1)
    first.send_signal(signal.SIGSTOP)  # until the second has had time to start
    second = start(tmp_path, *RUN)
    assert second.stdout is not None
    assert f"is being trained by process {first.pid}; waiting" in second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    first_out, _ = first.communicate(timeout=240)
    second_out, second_err = second.communicate(timeout=240)
    assert (first.returncode, second.returncode) == (0, 0), second_err
    assert "N = 12000" in first_out
    assert "is done" in second_out
    assert measured(tmp_path) == whole


def test_a_waiting_process_takes_over_from_one_that_is_killed(tmp_path: Path, whole: Any) -> None:
    first = start(tmp_path, *RUN)
    wait_for_epoch(first, tmp_path, 1)
    first.send_signal(signal.SIGSTOP)
    second = start(tmp_path, *RUN)
    assert second.stdout is not None
    assert "waiting for it to end" in second.stdout.readline()
    first.kill()
    first.wait()
    second.communicate(timeout=240)
    assert second.returncode == 0
    assert measured(tmp_path) == whole


def stopped(config: Config, steps: int) -> Run:
    """The run after so many steps."""
    run, stop = Run(config.results_dir, config.id), train.Stop()
    training = train.Training(config, run, stop)
    bar = training._bar
    done = iter(range(steps - 1))

    def counting() -> Any:
        found = bar()
        found.update = lambda: None if next(done, None) is not None else setattr(stop, "number", signal.SIGTERM)
        return found

    training._bar = counting  # type: ignore[method-assign]
    with run.open(waiting=lambda _: None), pytest.raises(train.Interrupted):
        training.finish()
    return run


@pytest.mark.parametrize("damage", ["missing", "short", "torn", "longer", "no JSON", "another", "a digit"])
def test_the_lines_of_the_epochs_come_from_the_checkpoint_whatever_has_become_of_their_file(
    tmp_path: Path, damage: str, halfway: tuple[Config, Path, Any]
) -> None:
    config, folder, whole = halfway
    shutil.copytree(folder, tmp_path / "results")
    config = dataclasses.replace(config, results_dir=str(tmp_path / "results"))
    run = Run(config.results_dir, config.id)
    content = run.metrics.read_bytes()
    first, second = content.splitlines(keepends=True)
    damaged = {
        "short": first,
        "torn": first + second[:20],
        "longer": first + second + second.replace(b'"epoch": 2', b'"epoch": 3'),
        "no JSON": b"\xff\x00" * 100,
        "another": second + first,
        "a digit": content.replace(b'"kl": ', b'"kl": 1'),
    }
    run.metrics.unlink()
    if damage != "missing":
        assert damaged[damage] != content
        run.metrics.write_bytes(damaged[damage])
    assert execute(config)[0] == "done"
    assert measured(tmp_path, config) == whole


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, Any]:
    """A run stopped in its third epoch, its results, and what it measures when nothing stops it."""
    overrides = [*SMALL, "dataset.subset=400", "dataset.test_subset=100", "method=sparsevd", "runtime.progress=false"]
    places = [tmp_path_factory.mktemp(name) / "results" for name in ("half", "whole")]
    half, complete = (compose([*overrides, f"results_dir={place}"]) for place in places)
    stopped(half, 45)
    execute(complete)
    return half, places[0], measured(places[1].parent, complete)


def test_a_checkpoint_of_before_the_lines_were_in_it_resumes_by_their_file(
    tmp_path: Path, halfway: tuple[Config, Path, Any]
) -> None:
    config, folder, whole = halfway
    shutil.copytree(folder, tmp_path / "results")
    config = dataclasses.replace(config, results_dir=str(tmp_path / "results"))
    run = Run(config.results_dir, config.id)
    state = checkpoint.load(run.checkpoint)
    del state["lines"]
    torch.save(state, run.checkpoint)  # without the run's id, too
    content = run.metrics.read_bytes()
    for damaged in (content.splitlines(keepends=True)[0], b'{"epo\n{"epoch": 2}\n', b"\xff\n{}\n", b""):
        run.metrics.write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
            execute(config)
        assert run.metrics.read_bytes() == damaged
    run.metrics.write_bytes(content + b'{"epo')
    assert execute(config)[0] == "done"
    assert measured(tmp_path, config) == whole


def test_another_runs_file_is_refused_before_anything_is_trained(tmp_path: Path, halfway: tuple[Config, Path, Any]) -> None:
    config, folder, _ = halfway
    shutil.copytree(folder, tmp_path / "results")
    config = dataclasses.replace(config, results_dir=str(tmp_path / "results"))
    run, other = Run(config.results_dir, config.id), dataclasses.replace(config, seed=7)
    strange = stopped(other, 25)
    content = strange.checkpoint.read_bytes()
    shutil.move(strange.folder, tmp_path / "away")
    before = run.checkpoint.read_bytes()
    for path in (run.checkpoint, run.snapshot(1)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path.name} belongs to the run {other.id}"):
            execute(config)
        assert path.read_bytes() == content
        run.checkpoint.write_bytes(before)
    run.snapshot(1).write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"epoch-1\.pt is damaged"):
        execute(config)
    assert run.result() is None


def test_what_a_process_left_that_was_killed_right_after_the_record_goes(tmp_path: Path) -> None:
    config = compose([*SMALL, "train.epochs=1", "dataset.subset=200", f"results_dir={tmp_path}"])
    run = Run(tmp_path, config.id)
    assert execute(config)[0] == "done"
    run.checkpoint.write_bytes(b"left over")
    assert execute(config)[0] == "skipped"
    assert not run.checkpoint.exists()


def test_half_written_files_of_a_killed_process_are_ignored(tmp_path: Path) -> None:
    overrides = [*SMALL, "train.epochs=1", "dataset.subset=200", f"results_dir={tmp_path}"]
    config = compose(overrides)
    run = Run(tmp_path, config.id)
    run.folder.mkdir(parents=True)
    for name in ("result.json", "checkpoint.pt", "metrics.jsonl", "weights.pt"):
        (run.folder / f".{name}.4711.tmp").write_bytes(b'{"schema": 1, "id"')  # what atomic writing leaves behind
    assert run.result() is None
    assert run.epochs() == []
    assert execute(config)[0] == "done"
    assert [line["epoch"] for line in run.epochs()] == [1]
    assert execute(config)[0] == "skipped"
