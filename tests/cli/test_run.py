"""The command line as a user meets it: real processes, real folders."""

import json
import math
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Command
from hydra.core.override_parser.overrides_parser import OverridesParser

from svdo import UserError, train
from svdo.cli import sweep
from svdo.cli.compose import compose
from svdo.runs import Run

QUICK = [*SMALL, "train.epochs=1", "dataset.subset=200"]


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    return folder


def test_a_run_prints_its_layers_and_leaves_one_record_and_nothing_else(svdo_run: Command, tmp_path: Path) -> None:
    done = svdo_run(*SMALL)
    assert done.returncode == 0, done.stderr
    assert "N = 2000" in done.stdout
    assert "fc4" in done.stdout.splitlines()[-6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    folder = run_folder(tmp_path)
    assert folder.name == compose(SMALL).id
    assert {path.name for path in folder.iterdir()} == {"result.json", "metrics.jsonl", "weights.pt", "lock"}
    record = json.loads((folder / "result.json").read_text())
    assert record["schema"] == 1
    assert record["id"] == folder.name
    assert (record["model"], record["dataset"], record["method"], record["seed"]) == ("mlp", "mnist", "sparsevd", 0)
    assert record["config"]["train"]["epochs"] == record["epochs"] == 3
    assert set(record["test"]) == {"error", "nll", "ece", "brier"}
    assert all(math.isfinite(value) for part in ("test", "train", "test_sampled") for value in record[part].values())
    assert [layer["name"] for layer in record["layers"]] == ["fc1", "fc2", "fc3", "fc4"]
    assert record["weights"] == sum(layer["weights"] for layer in record["layers"]) == 784 * 16 + 2 * 16 * 16 + 160
    assert record["nonzero"] == sum(layer["nonzero"] for layer in record["layers"])
    assert record["compression"] == pytest.approx(record["weights"] / record["nonzero"])
    assert record["sparsity"] == pytest.approx(100 * (1 - record["nonzero"] / record["weights"]))
    assert {"commit", "torch", "device", "host_cores", "started"} <= set(record["provenance"])
    assert str(tmp_path) not in json.dumps(record)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    keys = {"epoch", "lr", "kl_weight", "train_loss", "kl", "train_error", "test_error", "sparsity", "compression", "seconds"}
    assert all(set(line) == keys for line in lines)
    assert lines[-1]["test_error"] == record["test"]["error"]

    before = (folder / "result.json").read_bytes()
    again = svdo_run(*SMALL)
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert (folder / "result.json").read_bytes() == before


MISTAKES = {
    "metod=sparsevd": "did you mean method",
    "+method.x=1": "method.x",
    "+speed=1": "speed",
    "method=sparsvd": "sparsevd",
    "model.k=2": "model.k",
    "train.epochs=-1": "at least 0",
    "train.epochs=ten": "ten",
    "train.epoch=3": "did you mean train.epochs",
    "train.batch_size=1000": "200 training examples",
    "dataset.normalization=x": "pixel_mean, standard, zca, none",
    "results_dir=occupied": "results_dir",
    "results_dir='~nosuchuser/x'": "results_dir=~nosuchuser/x: there is no such user",
    "data_dir='~nosuchuser/x'": "data_dir=~nosuchuser/x: there is no such user",
    "pretrained=nothing": "nothing",
    "~seed": "seed is missing",
    "runtime.device=nonsense": "runtime.device=nonsense",
    "train.lr=1e30": "the loss is not finite at epoch",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_status_2(svdo_run: Command, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    done = svdo_run(*QUICK, mistake)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert MISTAKES[mistake] in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_damaged_files_are_named_and_nothing_is_overwritten(svdo_run: Command, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
        done = svdo_run(*arguments)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert {path: path.read_bytes() for path in before} == before
        return done.stderr

    run = tmp_path / "results" / "runs" / compose(QUICK).id
    run.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "checkpoint.pt is damaged" in refused(*QUICK)
    for damaged in ('{"schema": 1, "id"', json.dumps({"schema": 1, "id": run.name})):
        (run / "result.json").write_text(damaged)
        assert "result.json cannot be read" in refused(*QUICK)
    stored = {field: np.zeros(9, np.uint8) for field in ("train_images", "train_labels", "test_images", "test_labels")}
    np.savez(tmp_path / "fashion_mnist.npz", **stored)
    data = tmp_path / "fashion_mnist.npz"
    data.write_bytes(data.read_bytes()[:-100])
    assert "fashion_mnist.npz is damaged" in refused(*QUICK, "dataset=fashion_mnist", f"data_dir={tmp_path}")


def test_a_flipped_byte_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    from svdo.runs import checkpoint

    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.arange(1000.0)})
    assert torch.equal(checkpoint.load(path)["x"], torch.arange(1000.0))
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(1000.0).numpy().tobytes()[400:440])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"is damaged \(it holds a list"):
        checkpoint.load(path)


def test_a_full_disk_is_named_with_the_file_and_the_file_before_stays(tmp_path: Path) -> None:
    from svdo.runs import checkpoint

    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.zeros(10)})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match=r"File too large: '.*checkpoint\.pt'"):
            checkpoint.save(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_epochs_means_the_untrained_network(svdo_run: Command, tmp_path: Path) -> None:
    done = svdo_run(*QUICK, "train.epochs=0")
    assert done.returncode == 0, done.stderr
    record = json.loads((run_folder(tmp_path) / "result.json").read_text())
    assert record["epochs"] == 0
    assert record["test"]["error"] > 50


def test_a_start_that_removes_everything_is_warned_of_in_one_line(svdo_run: Command) -> None:
    done = svdo_run("model=lenet300", "method.log_sigma2=3", "train.epochs=0", "dataset.subset=100", "dataset.test_subset=100")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("svdo: warning: most weights are removed from the start") and "fc1, fc2, fc3" in line


def test_a_run_says_beforehand_what_it_minimises(svdo_run: Command) -> None:
    for method, has_kl in (("none", False), ("vd_b", True)):
        said = svdo_run(*QUICK, "train.epochs=0", f"method={method}", "train.weight_decay=1e-4").stdout
        assert ("mean cross-entropy + kl_weight * KL / N" in said) == ("KL weight 0 to 1" in said) == has_kl
        assert "of training, L2 0.0001" in said


def test_a_sweep_ends_with_one_table_and_repeating_it_trains_nothing(svdo_run: Command, tmp_path: Path) -> None:
    sweep = ["-m", *QUICK, "method=binary,sparsevd", "model.width=8,16"]
    done = svdo_run(*sweep)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("model.width ") :]
    assert [line.split()[:2] for line in table.splitlines()[2:6]] == [
        ["8", "binary"],
        ["8", "sparsevd"],
        ["16", "binary"],
        ["16", "sparsevd"],
    ]
    assert "4 done, 0 skipped, 0 failed" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["runs"]
    records = {path: path.read_bytes() for path in tmp_path.rglob("result.json")}
    assert len(records) == 4
    again = svdo_run(*sweep)
    assert "0 done, 4 skipped, 0 failed" in again.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("result.json")} == records


def test_a_damaged_record_fails_its_job_and_the_sweep_with_it(svdo_run: Command, tmp_path: Path) -> None:
    record = tmp_path / "results" / "runs" / compose([*QUICK, "seed=1"]).id / "result.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"schema": 1, "id"')
    done = svdo_run("-m", *QUICK, "seed=0,1")
    assert done.returncode == 2
    assert "1 done, 0 skipped, 1 failed" in done.stdout
    assert "result.json cannot be read" in done.stdout


def test_a_sweep_speaks_of_its_own_jobs_alone(svdo_run: Command, tmp_path: Path) -> None:
    where = "hydra.sweep.dir=sweep"
    assert svdo_run("-m", *QUICK, where, "train.batch_size=20,1000,2000").returncode == 2
    done = svdo_run("-m", *QUICK, where, "train.batch_size=20,25")
    assert done.returncode == 0, done.stderr
    assert "1 done, 1 skipped, 0 failed" in done.stdout


def test_a_failed_job_stops_no_other_and_fails_the_sweep(svdo_run: Command, tmp_path: Path) -> None:
    done = svdo_run("-m", *QUICK, "train.batch_size=20,5000,50")
    assert done.returncode == 2
    assert "2 done, 0 skipped, 1 failed" in done.stdout
    assert "train.batch_size=5000 exceeds the 200 training examples" in done.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_a_sweep_runs_under_joblib(svdo_run: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = svdo_run("-m", *QUICK, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert "2 done, 0 skipped, 0 failed" in done.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_is_a_mistake_that_leaves_earlier_results_alone(svdo_run: Command, tmp_path: Path) -> None:
    other = tmp_path / "results" / "runs" / "other"
    other.mkdir(parents=True)
    (other / "result.json").write_text('{"id": "other"}')
    done = svdo_run(*QUICK, "runtime.device=cuda")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "runtime.device=cuda cannot be used" in done.stderr
    assert (other / "result.json").read_text() == '{"id": "other"}'
    assert [path.name for path in tmp_path.rglob("result.json")] == ["result.json"]


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"id": "another"}'])
def test_a_record_that_is_json_but_not_this_runs_is_refused(content: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "some-run")
    run.folder.mkdir(parents=True)
    run.record.write_text(content)
    with pytest.raises(UserError, match="is not the record of some-run"):
        run.result()


def test_no_choice_at_all_gets_one_line(svdo_run: Command) -> None:
    done = svdo_run("train=null")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_an_override_that_cannot_be_resolved_is_a_mistake(svdo_run: Command, sweep: list[str]) -> None:
    assert svdo_run(*sweep, *QUICK, "seed=${nope}").returncode == 2


def test_a_sweep_of_nothing_but_typos_leaves_nothing(svdo_run: Command, tmp_path: Path) -> None:
    done = svdo_run("-m", *QUICK, "method=nne,sparsvd")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "method=nne is not a choice" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_typo_in_a_sweep_fails_its_job_and_the_others_train(
    svdo_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    done = svdo_run("-m", *QUICK, "train.epochs=0", "method=sparsvd,none", "seed=0,1", "hydra.sweep.dir=.")
    assert done.returncode == 2
    lines = done.stdout[done.stdout.rindex("method ") :].splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["sparsvd", "sparsvd", "none", "none"]
    assert "2 done, 0 skipped, 2 failed" in done.stdout
    assert "sparsvd is not a choice; take one of" in done.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert not list((tmp_path / "tmp").iterdir())


def test_a_sweep_has_a_job_and_not_without_end() -> None:
    def jobs(*overrides: str) -> list[list[str]]:
        return sweep.expand(OverridesParser.create().parse_overrides(list(overrides)))

    assert jobs("a=1,2", "b=x", "~c", "a=3,4") == [["a=3", "b=x", "~c"], ["a=4", "b=x", "~c"]]
    for empty in ("seed=range(0)", "seed=range(5,5)"):
        with pytest.raises(UserError, match="has no value"):
            jobs("a=1", empty)
    for uncounted in ("seed=range(nan)", "seed=range(0,3,nan)"):
        with pytest.raises(UserError, match="whole numbers"):
            jobs(uncounted)
    for endless in (["seed=range(1000000000)"], ["a=range(200)", "b=range(200)"]):
        with pytest.raises(UserError, match="at most 10000"):
            jobs(*endless)


UNCOUNTED = {
    "model.width=1000000000000000000": "more weights than can be counted",
    "model.width=10000000": "takes at least 6.4 PB of memory",
    "method.components=1000000000 method=sws": "between 1 and 256",
    "method.rates={conv9:0.5} method=binary": "no layer is called conv9",
    "train.batch_size=1000000000000": "exceeds the 200 training examples",
    "runtime.device=nonsense": "cannot be used",
    "pretrained=nothing": "no finished run",
}


def test_what_cannot_be_trained_leaves_nothing_and_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line, message in UNCOUNTED.items():
        with pytest.raises(UserError, match=message):
            train.execute(compose([*QUICK, *line.split()]))
    assert not list(tmp_path.iterdir())
