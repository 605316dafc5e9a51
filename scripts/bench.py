"""What a training step costs: dense against noisy networks, against the bare matrix products, and the data feed.

``python scripts/bench.py`` (or ``make bench``) runs everything in one process, interleaved and rotated, on one thread of a
CPU or on the GPU; it reports medians with the quartiles, as ratios to the dense step, and writes
``results/benchmarks/<device>.json`` and ``.md``. Ratios carry over between machines better than milliseconds do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import svdo
from svdo import machine, train
from svdo.cli.compose import compose
from svdo.data import DataSpec, ImageDataset, prepare
from svdo.data.sources import load
from svdo.layers import noisy_layers
from svdo.models import MODELS, build
from svdo.objective import objective
from svdo.runs import Run

BATCH = 100
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {
    "lenet300": ({}, (1, 28, 28), 20),
    "lenet5": ({}, (1, 28, 28), 4),
    "vgg k=0.25": ({"k": 0.25}, (3, 32, 32), 1),
    "vgg k=1": ({"k": 1.0}, (3, 32, 32), 1),
}
Step = Callable[[], Any]


def training_step(name: str, kind: str, device: torch.device) -> Step:
    """One step of ``kind`` on random data: dense (torch's defaults), dense+ (channels_last, fused Adam), or a method.

    Behind a method's name may stand a precision, or "compiled".
    """
    settings, shape, _ = NETWORKS[name]
    model = build(MODELS[name.split()[0]](**settings), DataSpec(shape, 10), seed=0)
    tuned = kind != "dense"
    method, _, way = kind.partition(" ")
    if method not in ("dense", "dense+"):
        model = svdo.convert(model, method)
    for _, layer in noisy_layers(model):
        layer.variance_dtype = torch.bfloat16 if way == "bf16_variance" else None
    model = model.to(device)
    x, y = torch.randn(BATCH, *shape, device=device), torch.randint(10, (BATCH,), device=device)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as data.py feeds it, also where there is one channel
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True if tuned else None)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=way == "bf16")
    forward: Callable[[Tensor], Tensor] = model
    divergence: Callable[[nn.Module], Tensor] = svdo.kl
    if way == "compiled":
        forward, divergence = machine.compiled(forward, device), machine.compiled(divergence, device)

    def step() -> None:
        with autocast:
            logits = forward(x)
        loss = objective(F.cross_entropy(logits.float(), y), divergence(model), 60_000, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def products_alone(name: str, device: torch.device) -> Step:
    """The matrix products and convolutions of one dense forward and backward pass, and nothing else."""
    settings, shape, _ = NETWORKS[name]
    model = build(MODELS[name.split()[0]](**settings), DataSpec(shape, 10), seed=0).to(device)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    x = torch.randn(BATCH, *shape, device=device)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, inputs[0].detach(), torch.randn_like(output)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    model(x)
    for hook in hooks:
        hook.remove()
    plan: list[tuple[Tensor, Tensor, Tensor, list[Any] | None, list[bool]]] = []
    for i, (layer, a, g) in enumerate(calls):
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        padding = list(layer.padding) if isinstance(layer, nn.Conv2d) else None
        plan.append((a, weight.detach(), g, padding, [i > 0, True, False]))

    def step() -> None:
        for a, w, g, padding, needed in plan:
            if padding is None:
                F.linear(a, w)
                g.t() @ a
                if needed[0]:
                    g @ w
            else:
                F.conv2d(a, w, padding=padding)
                torch.ops.aten.convolution_backward(g, a, w, None, [1, 1], padding, [1, 1], False, [0, 0], 1, needed)

    return step


def timed(steps: dict[str, Step], inner: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call of each step, one figure a round; the order rotates from round to round."""
    for step in steps.values():
        step()
        step()
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = _now(device)
            for _ in range(inner):
                steps[name]()
            times[name].append((_now(device) - start) / inner * 1e3)
    return times


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()  # on one thread the processor's own time; waiting for a busy core does not count


def feed() -> dict[str, float]:
    """Seconds to feed one epoch of MNIST in batches of 100: torchvision's loader, and the resident tensor."""
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision import transforms
    from torchvision.transforms import functional

    config = compose(["model=lenet300"])
    images = load("mnist", Path(config.data_dir))
    assert isinstance(config.dataset, ImageDataset)
    data = prepare(config.dataset, images, torch.device("cpu"))
    transform = transforms.Normalize((0.1307,), (0.3081,))

    class Pictures(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, Any]:
            image, label = self.tensors[0][index], self.tensors[1][index]
            return transform(functional.to_tensor(functional.to_pil_image(image.numpy()))), label

    pictures = Pictures(torch.from_numpy(images.train_images), torch.from_numpy(images.train_labels))
    loader = DataLoader(pictures, BATCH, shuffle=True)
    roads: dict[str, Callable[[], Any]] = {"DataLoader": lambda: loader, "resident": lambda: data.train.batches(BATCH, 0, 0)}
    seconds = {}
    for name, batches in roads.items():
        start = time.process_time()
        for _ in batches():
            pass
        seconds[name] = time.process_time() - start
    return seconds


def epoch(name: str, method: str, device: torch.device) -> float:
    """Seconds of one epoch on MNIST from end to end: feed, steps, evaluation, logging and checkpoint, as svdo-run does it."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"model={name}",
            f"method={method}",
            "train.epochs=1",
            "train.kl_full=0",
            "train.kl_start=0",
            f"runtime.device={device}",
        ]
        config = compose([*overrides, "runtime.progress=false", f"results_dir={folder}"])
        with contextlib.redirect_stdout(io.StringIO()):
            train.execute(config)
        (line,) = Run(folder, config.id).epochs()
        seconds: float = line["seconds"]
        return seconds


def _high_water() -> float:
    """This process's peak memory so far, in MiB; not getrusage, whose maximum begins at the parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def peak_memory(name: str, kind: str) -> float:
    """MiB that a fresh process needs at most for three such steps on the CPU, beyond torch and the library themselves."""
    command = [sys.executable, __file__, "--device", "cpu", "--memory-of", name, kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def busy(cores: float | None) -> str:
    """A warning where other processes used so many of this machine's cores meanwhile; else nothing."""
    if cores is None or cores <= 0.2:
        return ""
    return f"other processes used {cores:.1f} of this machine's cores meanwhile; do not quote these figures"


def report(
    results: dict[str, dict[str, list[float]]],
    memory: dict[str, dict[str, float]],
    epochs: dict[str, dict[str, float]],
    feeding: dict[str, float],
    notes: Sequence[str],
) -> str:
    """The Markdown tables."""
    rows = []
    for network, times in results.items():
        dense, floor = statistics.median(times["dense"]), statistics.median(times["products alone"])
        for kind, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            rows.append(
                [
                    network,
                    kind,
                    f"{middle:.2f}",
                    f"{low:.2f} - {high:.2f}",
                    f"{middle / dense:.2f}",
                    f"{middle / floor / 2:.2f}",
                    f"{memory[network][kind]:.0f}" if kind in memory.get(network, {}) else "",
                ]
            )
    headers = ["network", "step", "ms", "quartiles", "x dense", "x limit", "peak MiB"]
    parts = [tabulate(rows, headers, tablefmt="github", disable_numparse=True)]
    if epochs:
        lines = [[name, *(f"{seconds:.1f}" for seconds in times.values())] for name, times in epochs.items()]
        kinds = [f"{method}, s" for method in next(iter(epochs.values()))]
        parts += [
            "One epoch of MNIST from end to end (feed, steps, evaluation, logging, checkpoint), batch 100:",
            tabulate(lines, ["network", *kinds], tablefmt="github", disable_numparse=True),
        ]
    if feeding:
        ratio = feeding["DataLoader"] / feeding["resident"]
        parts.append(
            f"Feeding an epoch of MNIST: torchvision DataLoader {feeding['DataLoader']:.2f} s, resident tensor "
            f"{feeding['resident']:.3f} s, {ratio:.0f} times less."
        )
    return "\n\n".join([*parts, *notes]) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: all on a GPU, else all but the last")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    parser.add_argument("--compile", action="store_true", help="time compiled steps, too (the default on a GPU)")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "STEP"), help="print the peak memory of one kind of step")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need two figures")
    try:
        device = machine.device(svdo.config.RuntimeConfig(device=arguments.device))
    except svdo.UserError as error:
        parser.error(str(error))
    machine.prepare_process(threads=1)
    if arguments.memory_of:
        name, kind = arguments.memory_of
        before = _high_water()
        step = training_step(name, kind, device)
        for _ in range(3):
            step()
        print(_high_water() - before)
        return
    others = machine.watch_others()
    kinds = ["dense", "dense+", "binary", "sparsevd", "sparsevd bf16_variance", "sparsevd bf16"]
    kinds += ["sparsevd compiled"] * (arguments.compile or device.type == "cuda")
    results, memory = {}, {}
    names = arguments.networks or list(NETWORKS)[: None if device.type == "cuda" else -1]
    for name in names:
        steps = {kind: training_step(name, kind, device) for kind in kinds} | {"products alone": products_alone(name, device)}
        results[name] = timed(steps, NETWORKS[name][2], arguments.rounds, device)
        memory[name] = {kind: peak_memory(name, kind) for kind in kinds} if device.type == "cpu" else {}
    epochs = {
        name: {method: epoch(name, method, device) for method in ("none", "sparsevd")}
        for name in ("lenet300", "lenet5")
        if name in results
    }
    feeding = feed() if device.type == "cpu" else {}
    notes = [
        f"torch {torch.__version__}, {machine.device_name(device)}, batch {BATCH}, {arguments.rounds} rounds. x dense: over the"
        " dense step in torch's default settings. x limit: over twice the products alone, which is what a mean and a variance"
        " path must compute. dense+ has what the noisy steps have too: channels_last and fused Adam. peak MiB: of three"
        " such steps in a fresh process, beyond torch itself.",
        *filter(None, [busy(others())]),
    ]
    text = report(results, memory, epochs, feeding, notes)
    print(text)
    folder = arguments.results_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    stem = torch.cuda.get_device_name(device).replace(" ", "-").lower() if device.type == "cuda" else "cpu"
    content = {
        "torch": torch.__version__,
        "steps": results,
        "peak_mib": memory,
        "epochs": epochs,
        "feed": feeding,
        "notes": notes,
    }
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(f"# What a step costs\n\n{text}")


if __name__ == "__main__":
    main()
