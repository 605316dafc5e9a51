"""The run store: files that survive a power cut and say whose they are, and one process at a time."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL

from svdo.cli.compose import compose
from svdo.config import Config
from svdo.errors import UserError
from svdo.report import verify
from svdo.runs import Run, checkpoint, disk
from svdo.runs.disk import Lock
from svdo.train import execute


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs with weights and snapshots."""
    folder = tmp_path_factory.mktemp("store")
    for seed in (1, 2):
        execute(config_in(folder, seed))
    return folder


def config_in(folder: Path, seed: int = 1) -> Config:
    small = [*SMALL, "dataset.subset=200", "dataset.test_subset=100", "runtime.progress=false", "runtime.snapshots=2"]
    return compose([*small, "method=sparsevd", f"seed={seed}", f"results_dir={folder}"])


@pytest.fixture
def run(store: Path, tmp_path: Path) -> Run:
    """A copy of the first of them."""
    shutil.copytree(store / "runs", tmp_path / "runs")
    return Run(tmp_path, config_in(tmp_path).id)


def test_a_file_and_its_folder_are_on_disk_before_anything_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    real_sync, real_replace, real_unlink = os.fsync, os.replace, Path.unlink

    def sync(file: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{file}"))
        happened.append(f"sync {place.name.split('.tmp')[0].lstrip('.').rsplit(f'.{os.getpid()}')[0]}")
        real_sync(file)

    def replace(source: Path, target: Path) -> None:
        happened.append(f"move {target.name}")
        real_replace(source, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        happened.append(f"drop {path.name}")
        real_unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    config = compose(
        [*SMALL, "train.epochs=1", "dataset.subset=200", "dataset.test_subset=100", f"results_dir={tmp_path / 'a'}"]
    )
    execute(config)
    folders = [f"sync {name}" for name in (config.id, "runs", "a", tmp_path.name)]
    assert happened[:3] == [f"sync {name}" for name in ("runs", "a", tmp_path.name)]
    assert [
        step for name in ("checkpoint.pt", "weights.pt", "metrics.jsonl", "result.json") for step in
        (f"sync {name}", f"move {name}", folders[0])
    ] + ["drop checkpoint.pt", "drop error.txt"] == happened[3:]  # fmt: skip


def test_weights_are_a_plain_file_of_tensors_that_says_whose_it_is(run: Run) -> None:
    state = torch.load(run.weights, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    kept = run.tensors(run.weights)
    assert kept.keys() == state.keys()
    assert run.id.encode() in run.weights.read_bytes()
    with pytest.raises(UserError, match=f"belongs to the run {run.id}"):
        checkpoint.load(run.weights, "another")


@pytest.mark.parametrize("name", ["weights.pt", "metrics.jsonl", "epoch-2.pt", "result.json"])
def test_another_runs_file_beside_a_record_is_named(run: Run, name: str, tmp_path: Path) -> None:
    other = Run(tmp_path, config_in(tmp_path, 2).id)
    shutil.copy(other.folder / name, run.folder / name)
    assert_named(run, name)


def assert_named(run: Run, name: str) -> None:
    found = verify.verify(run.folder.parent.parent)
    assert (found.runs, found.right, len(found.wrong)) == (2, 1, 1)
    assert str(run.folder / name) in found.wrong[0]
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        run.tensors(run.folder / name) if name.endswith(".pt") else run.epochs()


def test_a_snapshot_that_the_record_does_not_know_is_named(run: Run) -> None:
    shutil.copy(run.snapshot(2), run.snapshot(7))
    assert_named(run, "epoch-7.pt")


def flipped(content: bytes, chance: random.Random) -> bytes:
    found = bytearray(content)
    found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


@pytest.mark.parametrize("name", ["weights.pt", "metrics.jsonl", "epoch-2.pt", "result.json"])
def test_a_flipped_bit_or_a_missing_end_is_named_wherever_it_is(run: Run, name: str) -> None:
    path, chance = run.folder / name, random.Random(name)
    content = path.read_bytes()
    damages: list[Callable[[], bytes]] = [lambda: flipped(content, chance), lambda: content[: chance.randrange(len(content))]]
    for number in range(20):
        damaged = damages[number % 2]()
        if name == "result.json" and damaged.split() == content.split():
            continue  # white space
        path.write_bytes(damaged)
        assert_named(run, name)


def test_a_bit_flipped_in_a_checkpoint_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    state = {"x": torch.arange(20.0), "lines": [{"epoch": 1, "kl": 0.5}]}
    path, chance = tmp_path / "checkpoint.pt", random.Random(0)
    checkpoint.save(path, state, "a-run")
    content = path.read_bytes()
    said = []
    for _ in range(300):
        path.write_bytes(flipped(content, chance))
        try:
            found = checkpoint.load(path, "a-run")
        except UserError as error:
            said.append(str(error))
            continue
        assert torch.equal(found["x"], state["x"]) and found["lines"] == state["lines"]
    assert len(said) > 30
    assert all(str(path) in line and "\n" not in line for line in said)


def test_weights_that_were_deleted_are_no_fault_and_epochs_are(run: Run, tmp_path: Path) -> None:
    run.weights.unlink()
    assert not verify.verify(tmp_path).wrong
    run.metrics.unlink()
    (wrong,) = verify.verify(tmp_path).wrong
    assert "metrics.jsonl is missing" in wrong


def test_verify_counts_what_has_no_checksum_and_what_is_not_finished(run: Run, tmp_path: Path) -> None:
    record = json.loads(run.record.read_text())
    del record["sha256"], record["files"]
    run.record.write_text(json.dumps(record))
    (tmp_path / "runs" / "another").mkdir()
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "kl.json").write_text('{"a": NaN}')
    said = str(verify.verify(tmp_path))
    assert "measured/kl.json cannot be read (it holds NaN" in said
    assert said.endswith("3 runs: 3 right, 1 of them not finished, 1 without checksum; 1 other files; 1 files are not right")
    with pytest.raises(UserError, match="there is no"):
        verify.verify(tmp_path / "nowhere")


def silent(_: str) -> None:
    raise AssertionError("nobody else holds it")


def test_a_lock_that_was_only_deleted_is_put_back(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    lock.hold(silent)
    lock.path.unlink()
    lock.check()
    assert lock.path.read_text() == str(os.getpid())
    with open(lock.path) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()
    Lock(lock.path).hold(silent)


@pytest.mark.parametrize("way", ["deleted", "replaced", "with its folder"])
def test_who_holds_a_lock_that_became_another_file_writes_nothing_more(tmp_path: Path, way: str) -> None:
    first, second = Run(tmp_path, "x"), Run(tmp_path, "x")
    with first.open(silent):
        first.append({"epoch": 1})
        if way == "deleted":
            (first.folder / "lock").unlink()
        elif way == "replaced":
            (first.folder / "new").write_text("")
            os.replace(first.folder / "new", first.folder / "lock")
        else:
            shutil.rmtree(first.folder)
        with second.open(silent):
            before = {path: path.read_bytes() for path in first.folder.iterdir()}
            writes: list[Callable[[], Any]] = [
                lambda: first.append({"epoch": 2}),
                lambda: first.save(first.checkpoint, {}),
                lambda: first.write_epochs([]),
            ]
            for write in writes * 2:
                with pytest.raises(UserError, match="was deleted and another process may be training this run"):
                    write()
            assert {path: path.read_bytes() for path in first.folder.iterdir()} == before
            assert second.busy()
            second.append({"epoch": 1})


def test_who_waited_for_a_file_that_was_replaced_waits_for_the_new_one(tmp_path: Path) -> None:
    path, said = tmp_path / "lock", []
    old = open(path, "w")  # noqa: SIM115 - held
    fcntl.flock(old, fcntl.LOCK_EX)

    def replaced(holder: str) -> None:
        said.append(holder)
        path.unlink()
        path.write_text("new")
        old.close()

    lock = Lock(path)
    lock.hold(replaced)
    assert said == ["?"]
    assert path.read_text() == str(os.getpid())
    lock.check()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"12a", b"9" * 10_000, "²".encode()])
def test_whatever_a_lock_holds_it_can_be_waited_for(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    other = open(path)  # noqa: SIM115 - held
    fcntl.flock(other, fcntl.LOCK_EX)
    Lock(path).hold(lambda holder: other.close())


def test_locks_work_by_msvcrt_where_there_is_no_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[tuple[int, int], int] = {}

    def locking(file: int, mode: int, count: int) -> None:
        assert (mode, count) == (7, 1)
        key = (os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR))
        if held.setdefault(key, file) != file:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=7))
    first, second, said = Lock(tmp_path / "lock"), Lock(tmp_path / "lock"), []

    def waiting(holder: str) -> None:
        said.append(holder)
        held.clear()  # the first ends

    first.hold(silent)
    second.hold(waiting)
    assert said == [str(os.getpid())]


def test_the_runner_and_the_store_import_without_fcntl() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import svdo.cli.run, svdo.runs, svdo.report.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_snapshot_is_not_taken_for_one(run: Run) -> None:
    (run.folder / "epoch-two.pt").write_text("mine")
    assert list(run.snapshots()) == [2]
