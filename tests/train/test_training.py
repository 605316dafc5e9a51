"""The loop, in this process."""

import json
import re
import signal
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL

import svdo
from svdo import machine, train
from svdo.batch_norm import reestimate_batch_norm
from svdo.cli.compose import compose
from svdo.config import RuntimeConfig, TrainConfig
from svdo.data import DataSpec, images
from svdo.data.known import Images
from svdo.errors import UserError
from svdo.layers import Noise, noisy_layers
from svdo.machine import devices, origin
from svdo.models import build
from svdo.models.vgg import VGG
from svdo.runs import REBUILT, Run, checkpoint
from svdo.tasks.classification import evaluate
from svdo.train import loop
from svdo.train.optimizers import optimizers
from svdo.train.start import network_of
from svdo.train.state import State

QUICK = [*SMALL, "train.epochs=1", "dataset.subset=400"]


def execute(tmp_path: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    return train.execute(compose([*QUICK, f"results_dir={tmp_path}", *overrides]))


def test_each_process_takes_a_gpu_of_its_own_while_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    held = []
    for _ in range(3):  # the lock is the file's, so forgetting the choice makes this process another one
        devices._gpu.cache_clear()
        held.append(devices._gpu())
        assert machine.device(RuntimeConfig()) == held[-1][0]
    assert [str(device) for device, _ in held] == ["cuda:0", "cuda:1", "cuda:0"]
    assert held[0][1] is not None
    held[0][1].close()
    devices._gpu.cache_clear()
    assert str(machine.device(RuntimeConfig())) == "cuda:0"
    devices._gpu.cache_clear()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_touches_matrices_and_filters_alone(name: str) -> None:
    model = svdo.convert(build(VGG(k=0.05), DataSpec((3, 32, 32), 10), 0), "sparsevd")
    found = optimizers(model, TrainConfig(optimizer=name, weight_decay=0.1))
    groups = [group for optimizer in found for group in optimizer.param_groups]
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() > 1}
    noise = [p for module in model.modules() if isinstance(module, Noise) for p in module.parameters()]
    assert noise
    assert not decayed & {id(p) for p in noise}
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_noise_learns_with_adam_beside_weights_that_learn_with_sgd(tmp_path: Path) -> None:
    """Adam's first step has the size of the learning rate, whatever the gradient's; SGD's is the gradient times it."""
    overrides = [*SMALL, "method=sparsevd", "train.optimizer=sgd", "train.lr=0.5", "train.noise_lr=0.01", "train.kl_start=0"]
    config = compose([*overrides, "train.lr_flat=1", "train.epochs=1", "train.batch_size=2000", f"results_dir={tmp_path}"])
    training = train.Training(config, Run(tmp_path, config.id), train.Stop())
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    training.run.folder.mkdir(parents=True)
    training.finish()
    for name, p in training.model.named_parameters():
        moved, gradient = p.detach() - before[name], p.grad
        assert gradient is not None
        if "noise." in name:
            assert moved[gradient != 0].abs().median() == pytest.approx(0.005, rel=0.01)
        else:
            torch.testing.assert_close(moved, -0.5 * gradient, rtol=1e-3, atol=1e-7)


def test_a_failure_that_is_no_mistake_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*QUICK, f"results_dir={tmp_path}"])
    run = Run(tmp_path, config.id)

    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "objective", broken)
    with pytest.raises(RuntimeError):
        train.execute(config)
    assert run.error.read_text().endswith("RuntimeError: a bug\n")
    monkeypatch.undo()
    assert train.execute(config)[0] == "done"
    assert not run.error.exists()


def test_a_commit_counts_as_changed_where_the_configuration_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("svdo", "conf"):
        (tmp_path / folder).mkdir()
    here, configuration = tmp_path / "svdo" / "machine.py", tmp_path / "conf" / "config.yaml"
    for path in (here, configuration):
        path.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(origin, "__file__", str(here))
    monkeypatch.setattr(origin.resources, "files", lambda name: tmp_path / "conf")
    clean = origin._commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    configuration.write_text("2")
    assert origin._commit() == clean + "+"


def test_a_loss_that_is_not_finite_names_layer_and_step_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose([*QUICK, "train.epochs=3", f"results_dir={tmp_path}"])
    run = Run(tmp_path, config.id)
    real = train.Training.rates

    def poison(self: train.Training, epoch: int, step: int) -> tuple[float, float, float]:
        if (epoch, step) == (1, 4):
            self.model.get_submodule("fc3").bias.data.fill_(float("inf"))  # type: ignore[union-attr]
        return real(self, epoch, step)

    monkeypatch.setattr(train.Training, "rates", poison)
    with pytest.raises(UserError, match=r"not finite at epoch 2, step 5 \(first seen in fc3"):
        train.execute(config)
    assert run.result() is None
    monkeypatch.undo()
    assert train.execute(config)[0] == "done"
    assert [line["epoch"] for line in run.epochs()] == [1, 2, 3]


def test_sparse_vd_can_start_from_a_trained_network(tmp_path: Path) -> None:
    _, parent = execute(tmp_path, "method=none")
    _, child = execute(tmp_path, f"pretrained={parent['id']}", "train.epochs=0", "method.log_sigma2=-15")
    dense = torch.load(Run(tmp_path, parent["id"]).weights, weights_only=True)
    sparse = torch.load(Run(tmp_path, child["id"]).weights, weights_only=True)
    assert all(torch.equal(sparse[key], value) for key, value in dense.items())
    assert child["test"]["error"] == pytest.approx(parent["test"]["error"], abs=1.0)
    with pytest.raises(UserError, match="is not a mlp of this shape"):
        execute(tmp_path, f"pretrained={parent['id']}", "model.width=9")
    Run(tmp_path, parent["id"]).weights.unlink()
    with pytest.raises(UserError, match=r"weights.pt is missing"):
        execute(tmp_path, f"pretrained={parent['id']}")


def test_a_run_trained_again_starts_from_weights_of_the_store_above_or_trained_again(tmp_path: Path) -> None:
    _, parent = execute(tmp_path, "method=none")
    again, start = f"results_dir={tmp_path / REBUILT}", f"pretrained={parent['id']}"
    _, from_above = execute(tmp_path, start, again, "seed=1")
    Run(tmp_path, parent["id"]).weights.unlink()
    with pytest.raises(UserError, match=f"train that run again with {re.escape(again)}"):
        execute(tmp_path, start, again, "seed=2")
    assert execute(tmp_path, "method=none", again)[0] == "done"
    _, below = execute(tmp_path, start, "seed=1")
    assert below["train"] == from_above["train"]
    assert not (tmp_path / REBUILT / REBUILT).exists()


def test_a_run_that_has_started_needs_its_parents_weights_no_more(tmp_path: Path) -> None:
    _, parent = execute(tmp_path, "method=none")
    config = compose([*QUICK, f"results_dir={tmp_path}", f"pretrained={parent['id']}", "train.epochs=2"])
    run = Run(tmp_path, config.id)
    run.folder.mkdir()
    training = train.Training(config, run, train.Stop(number=signal.SIGTERM))
    with pytest.raises(train.Interrupted):
        training.finish()
    Run(tmp_path, parent["id"]).weights.unlink()
    assert train.execute(config)[0] == "done"


def test_what_a_parent_had_removed_starts_at_zero(tmp_path: Path) -> None:
    _, parent = execute(tmp_path, "method=dns", "method.crispness={fc*:1}")
    assert parent["sparsity"] > 20.0
    _, child = execute(tmp_path, f"pretrained={parent['id']}", "method=none", "train.epochs=0")
    assert child["test"] == parent["test"]
    assert child["nonzero"] == parent["nonzero"]


def test_a_sparse_parent_is_read_without_a_warning_that_is_not_the_users(tmp_path: Path) -> None:
    _, parent = execute(tmp_path, "method=sparsevd", "train.epochs=1")
    run = Run(tmp_path, parent["id"])  # small weights, as long training makes: at its start the noise would drown them
    checkpoint.save(
        run.weights,
        {key: value * 1e-3 if value.is_floating_point() else value for key, value in checkpoint.load(run.weights).items()},
    )
    with pytest.raises(UserError, match=r"weights\.pt is damaged \(it is not the file that the record was written with"):
        execute(tmp_path, f"pretrained={parent['id']}", "method=none", "train.epochs=0")
    older = {key: value for key, value in parent.items() if key not in ("files", "sha256")}  # records once had no hashes
    run.record.write_text(json.dumps(older))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        execute(tmp_path, f"pretrained={parent['id']}", "method=none", "train.epochs=0")


def test_a_validation_split_is_what_epochs_are_judged_on(tmp_path: Path) -> None:
    _, record = execute(tmp_path, "dataset.validation=500")
    assert set(record["validation"]) == set(record["test"])
    line = Run(tmp_path, record["id"]).epochs()[-1]
    assert line["validation_error"] == record["validation"]["error"]
    assert "test_error" not in line


@pytest.mark.parametrize("precision", ["bf16_variance", "bf16"])
def test_lower_precision_trains_to_about_the_same(tmp_path: Path, precision: str) -> None:
    fp32 = execute(tmp_path / "fp32", "train.epochs=4")[1]
    low = execute(tmp_path / precision, "train.epochs=4", f"runtime.precision={precision}")[1]
    assert low["provenance"]["precision"] == precision
    assert low["train"]["nll"] == pytest.approx(fp32["train"]["nll"], rel=0.1)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni", "bf16"),
        ("flags\t\t: fpu amx_bf16 amx_tile", "bf16"),
        ("Features\t: fp asimd sve bf16 i8mm", "bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "fp32"),
        (None, "fp32"),
    ],
)
def test_auto_is_the_precision_that_the_cpu_has_instructions_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, precision: str
) -> None:
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    record = execute(tmp_path, "train.epochs=1", "dataset.subset=1000", "runtime.precision=auto")[1]
    assert record["provenance"]["precision"] == precision
    assert machine.precision(RuntimeConfig(precision="bf16_variance"), torch.device("cpu")) == "bf16_variance"


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16"])
def test_bf16_on_a_cpu_that_lacks_it_is_obeyed_and_remarked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    record = execute(tmp_path, "train.epochs=0", "runtime.precision=bf16")[1]
    assert record["provenance"]["precision"] == "bf16"
    device = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("device"))
    assert ("runtime.precision=fp32 may be many times faster" in device) == (flags == "avx2")


@pytest.mark.slow
def test_a_compiled_step_trains_to_about_the_same(tmp_path: Path) -> None:
    eager = execute(tmp_path / "eager", "train.epochs=4")[1]
    compiled = execute(tmp_path / "compiled", "train.epochs=4", "runtime.compile=true")[1]
    assert compiled["id"] == eager["id"]
    assert compiled["train"]["nll"] == pytest.approx(eager["train"]["nll"], rel=0.1)


def test_the_noise_parameters_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    config = compose([*QUICK, "train.noise_lr=3", "train.kl_start=0.5", "train.kl_full=1", f"results_dir={tmp_path}"])
    training = train.Training(config, Run(tmp_path, config.id), train.Stop())
    lr, noise_lr, _ = training.rates(0, 0)
    assert noise_lr == pytest.approx(3 * lr)
    assert lr > 0.0
    training.config.train.noise_waits = True
    assert training.rates(0, 0)[1] == 0.0
    lr, noise_lr, weight = training.rates(0, 15)
    assert noise_lr == pytest.approx(3 * weight * lr)
    assert weight == pytest.approx(0.5)


def test_noise_that_waits_stands_still_until_the_kl_acts(tmp_path: Path) -> None:
    schedule = ["train.epochs=2", "train.kl_start=0.5", "train.kl_full=0.75"]
    spread = {}
    for waits in (False, True):
        config = compose([*QUICK, *schedule, f"train.noise_waits={waits}", f"results_dir={tmp_path}"])
        training = train.Training(config, Run(tmp_path, config.id), train.Stop())
        bar = training._bar()
        start = training.model.fc1.weight.detach().clone()  # type: ignore[union-attr,operator]
        for epoch in (0, 1):
            training.state.progress.epoch, training.state.progress.step = epoch, 0
            training._epoch(bar, 0.0)
            noise = training.model.fc1.noise.log_sigma2.detach()  # type: ignore[union-attr]
            spread[waits, epoch] = (noise + 10.0).abs().max().item()
        assert not torch.equal(training.model.fc1.weight, start)
    assert spread[True, 0] == 0.0
    assert spread[False, 0] > 0.0
    assert spread[True, 1] > 0.0


@pytest.mark.parametrize("precision", ["bf16_variance", "bf16"])
def test_lower_precision_gives_convolutions_about_the_same_gradients(precision: str) -> None:
    config = compose(["model=lenet5", f"runtime.precision={precision}"])
    data = SimpleNamespace(shape=(1, 28, 28), classes=10)
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    gradients = []
    for setting in ("fp32", precision):
        config.runtime.precision = setting
        model = network_of(config, data)  # type: ignore[arg-type]
        for _, layer in noisy_layers(model):
            layer.variance_dtype = torch.bfloat16 if setting == "bf16_variance" else None
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "bf16"):
            logits = model(x)
        torch.nn.functional.cross_entropy(logits.float(), y).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "bias" not in name})
    for name, exact in gradients[0].items():
        assert torch.cosine_similarity(exact.flatten(), gradients[1][name].flatten(), dim=0) > 0.98, name


def test_random_labels_are_learned_as_given_and_tested_on_true_ones(tmp_path: Path) -> None:
    overrides = [
        "method=none",
        "dataset.random_labels=1",
        "dataset.subset=200",
        "train.epochs=80",
        "model.width=64",
        "train.lr=3e-3",
    ]
    _, record = execute(tmp_path, *overrides)
    assert record["train"]["error"] < 20
    assert record["test"]["error"] > 75


@pytest.mark.parametrize("method", ["none", "binary", "gaussian_a", "gaussian_b", "vd_a", "vd_a2", "vd_b", "sparsevd"])
def test_every_method_learns(tmp_path: Path, method: str) -> None:
    _, record = execute(tmp_path, f"method={method}", "train.epochs=4", "dataset.subset=3000")
    assert record["test"]["error"] < 60


@pytest.fixture
def color_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random pixels and labels in place of any data set."""
    pixels = torch.randint(0, 256, (200, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = torch.randint(0, 10, (200,), dtype=torch.uint8).numpy()
    monkeypatch.setattr(images, "load", lambda *_: Images(pixels, labels, pixels[:100], labels[:100], 10))


SMALL_VGG = ["model=vgg", "model.k=0.05", "method=sparsevd", "train.epochs=1", "train.lr=1e-3", "runtime.progress=false"]


@pytest.mark.usefixtures("color_images")
def test_a_network_with_batch_norm_is_tested_with_its_own_statistics_and_says_what_they_change(tmp_path: Path) -> None:
    config = compose([*SMALL_VGG, "train.batch_size=50", f"results_dir={tmp_path}"])
    _, record = train.execute(config)
    assert record["test_running_statistics"] != record["test"]
    averaged_overrides = [*SMALL_VGG, "train.batch_size=50", "train.averaging=0.5", f"results_dir={tmp_path}"]
    assert "test_running_statistics" not in train.execute(compose(averaged_overrides))[1]
    shared = compose([*averaged_overrides, "method=sws", "train.epochs=1"])  # changes the weights after the last epoch
    train.execute(shared)
    model, data = train.trained(shared, Run(tmp_path, shared.id))
    before = model.get_buffer("bn1.running_mean").clone()
    reestimate_batch_norm(model, (x for x, _ in data.train.batches(200, shared.seed, shared.train.epochs)))
    torch.testing.assert_close(model.get_buffer("bn1.running_mean"), before, rtol=1e-4, atol=1e-6)
    model, data = train.trained(config, Run(tmp_path, config.id))
    assert evaluate(model, data.test) == pytest.approx(record["test"], rel=1e-4)
    kept = model.get_buffer("bn1.running_mean").clone()
    for plain, same in ((True, False), (False, True)):  # estimated on images that are augmented as in training
        split = replace(data.train, crop=0, flip=False) if plain else data.train
        reestimate_batch_norm(model, (x for x, _ in split.batches(200, config.seed, config.train.epochs)))
        assert torch.allclose(model.get_buffer("bn1.running_mean"), kept, rtol=1e-4, atol=1e-6) == same


@pytest.mark.usefixtures("color_images")
def test_batch_norm_needs_two_images_in_a_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.batch_size=1 is too small for model=vgg"):
        train.execute(compose([*SMALL_VGG, "train.batch_size=1", f"results_dir={tmp_path}"]))


def test_the_average_over_steps_is_what_is_judged_and_kept(tmp_path: Path) -> None:
    """Against the recursion itself, from the networks of every step."""
    config = compose([*QUICK, "method=sparsevd", "train.averaging=0.9", f"results_dir={tmp_path}"])
    training = train.Training(config, Run(tmp_path, config.id), train.Stop())
    expected: list[torch.Tensor] = []
    (optimizer,) = training.state.optimizers
    step = optimizer.step

    def watched() -> None:
        step()
        now = [p.detach().clone() for p in training.model.parameters()]
        expected[:] = [0.9 * e + 0.1 * n for e, n in zip(expected, now, strict=True)] if expected else now

    optimizer.step = watched  # type: ignore[assignment]
    training.run.folder.mkdir(parents=True)
    record = training.finish()
    for p, e in zip(training.state.evaluated.parameters(), expected, strict=True):
        torch.testing.assert_close(p, e)
    assert record["test"] == evaluate(training.state.evaluated, training.data.test)
    assert record["test"] != evaluate(training.model, training.data.test)
    kept = torch.load(training.run.weights, weights_only=True)
    assert torch.equal(kept["fc1.weight"], training.state.evaluated.get_parameter("fc1.weight"))


def test_the_best_epoch_is_the_one_whose_network_is_kept(tmp_path: Path) -> None:
    chosen = ["method=none", "dataset.validation=300", "train.epochs=8", "train.lr=0.03"]
    _, record = execute(tmp_path, *chosen, "train.best_epoch=true")
    errors = [line["validation_error"] for line in Run(tmp_path, record["id"]).epochs()]
    assert record["best_epoch"] == 1 + errors.index(min(errors))
    assert record["best_epoch"] < 8  # else the test shows nothing
    assert record["validation"]["error"] == min(errors)
    assert record["objective"] == Run(tmp_path, record["id"]).epochs()[record["best_epoch"] - 1]["train_loss"]
    _, last = execute(tmp_path, *chosen)
    assert last["validation"]["error"] == errors[-1]
    assert "best_epoch" not in last


def test_the_best_epoch_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["method=binary", "dataset.validation=300", "train.epochs=8", "train.lr=0.03", "train.best_epoch=true"]
    _, whole = execute(tmp_path / "whole", *chosen)
    after = whole["best_epoch"]
    assert after < 8  # else the test shows nothing
    real = train.Training._epoch

    def stop(self: train.Training, *arguments: Any) -> None:
        if self.state.progress.epoch == after:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(train.Training, "_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path / "cut", *chosen)
    monkeypatch.undo()
    _, cut = execute(tmp_path / "cut", *chosen)
    for record in (whole, cut):
        del record["seconds"], record["core_seconds"], record["provenance"], record["files"]["metrics.jsonl"], record["sha256"]
    assert cut == whole


def test_the_record_gives_the_mean_dropout_rate_of_each_layer(tmp_path: Path) -> None:
    _, record = execute(tmp_path, "method=vd_b", "method.rates={fc1:0.2,fc2:0.5,fc3:0.4}", "train.epochs=0")
    rates = [layer["rate"] for layer in record["layers"]]
    assert rates[:3] == pytest.approx([0.2, 0.5, 0.4], abs=1e-3)
    assert rates[3] is None  # a plain layer
    _, trained = execute(tmp_path, "method=vd_a")
    assert all(0.0 < layer["rate"] < 0.5 for layer in trained["layers"])


def test_batch_norm_is_that_of_the_averaged_network(tmp_path: Path) -> None:
    config = compose([*QUICK, "method=none", "train.averaging=0.9", f"results_dir={tmp_path}"])
    training = train.Training(config, Run(tmp_path, config.id), train.Stop())
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(784), training.model)
    training.model, training.forward = network, network
    training.state = State(network, config.train, training.device, training.state.origins[0])
    training.run.folder.mkdir(parents=True)
    training._fit()
    norm = training.state.evaluated.get_submodule("1")
    pixels = torch.cat([x for x, _ in training.data.train.chunks(400)]).flatten(1)
    torch.testing.assert_close(norm.running_mean, pixels.mean(0))
