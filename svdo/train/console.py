"""What a person reads while and after a run trains: plain text, no decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..config import Config
from ..objective import describe
from ..runs import Record


def plan(config: Config, device: str, sizes: dict[str, int], weights: int, has_kl: bool, folder: str) -> str:
    """What is about to happen, a line per subject."""
    train, dataset = config.train, config.dataset
    data = ", ".join(f"{count:,} {part}" for part, count in sizes.items() if count).replace(",", " ").replace("  ", ", ")
    notes = [f"normalised by {dataset.normalization}"]
    notes += [f"crop {dataset.crop}"] if dataset.crop else []
    notes += ["flip"] if dataset.flip else []
    notes += [f"{100 * dataset.random_labels:g} % random labels"] if dataset.random_labels else []
    training = [f"{train.epochs} epochs", f"batch {train.batch_size}", train.optimizer]
    training += [f"lr {train.lr:g} falling from {train.lr_flat:.1%} of training"]
    training += [f"L2 {train.weight_decay:g}"] if train.weight_decay else []
    if has_kl:
        training += [f"KL weight 0 to {train.kl_weight * train.kl_peak:g} between {train.kl_start:.1%} and {train.kl_full:.1%}"]
        training += [f"then to {train.kl_weight:g} at {train.kl_settled:.1%}"] if train.kl_peak > 1 else []
    lines = [
        ("run", config.id),
        ("model", f"{config.model.name}, {weights:,} weights".replace(",", " ").replace("  ", ", ")),
        ("data", f"{dataset.name}: {data}; {', '.join(notes)}"),
        ("method", config.method.name + (f", from {config.pretrained}" if config.pretrained else "")),
        ("objective", describe(sizes["train"] if has_kl else None)),
        ("training", ", ".join(training)),
        ("device", device),
        ("folder", folder),
    ]
    return "\n".join(f"{key:<10} {value}" for key, value in lines)


class EpochLines:
    """One aligned line per epoch, under a header that is printed once."""

    def __init__(self, epochs: int, layers: Sequence[str], held_out: str) -> None:
        self._digits = max(len(str(epochs)), 2)
        self._epochs = epochs
        self._held_out = f"{held_out}_error"
        self._widths = [max(len(name), 6) for name in layers]
        names = [name.rjust(width) for name, width in zip(layers, self._widths, strict=True)]
        self.header = "  ".join(
            [
                "epoch".rjust(2 * self._digits + 1),
                "loss".rjust(9),
                "KL".rjust(9),
                "KL wt",
                "train %",
                f"{held_out[:5]} %".rjust(7),
                *names,
                "compression",
            ]
        )

    def line(self, record: Record) -> str:
        """The epoch's figures; sparsity per layer in percent."""
        sparsity = [f"{value:{width}.1f}" for value, width in zip(record["sparsity"].values(), self._widths, strict=True)]
        return "  ".join(
            [
                f"{record['epoch']:>{self._digits}}/{self._epochs:<{self._digits}}",
                f"{record['train_loss']:9.4f}",
                f"{record['kl']:9.3g}",
                f"{record['kl_weight']:5.3f}",
                f"{record['train_error']:7.2f}",
                f"{record[self._held_out]:7.2f}",
                *sparsity,
                ratio(record["compression"]).rjust(11),
            ]
        )


def ratio(value: float | None) -> str:
    """A compression ratio; none and infinity mean that no weight is left."""
    return "no weights" if value is None or math.isinf(value) else f"{value:.1f}x"


def layer_table(record: Record) -> str:
    """The run's per-layer table and its errors."""
    rows: list[list[Any]] = [
        [layer["name"], layer["weights"], layer["nonzero"], layer["sparsity"]] for layer in record["layers"]
    ]
    rows.append(["all", record["weights"], record["nonzero"], record["sparsity"]])
    table = tabulate(rows, headers=["layer", "weights", "nonzero", "sparsity %"], floatfmt=".2f")
    parts = [f"test error {record['test']['error']:.2f} %"]
    if "validation" in record:
        parts.append(f"validation error {record['validation']['error']:.2f} %")
    parts += [f"compression {ratio(record['compression'])}", f"{record['epochs']} epochs", f"{record['seconds']:.0f} s"]
    return f"{table}\n\n{', '.join(parts)}"


def sweep_table(outcomes: Sequence[dict[str, Any]], records: Sequence[Record | None]) -> str:
    """A multirun's runs side by side: what varied between them, their figures, and done, skipped or failed."""
    varied = [key for key in _keys(outcomes) if len({str(outcome["overrides"].get(key)) for outcome in outcomes}) > 1]
    rows = []
    for outcome, record in zip(outcomes, records, strict=True):
        figures: list[Any] = [None] * 4
        if record is not None:
            figures = [record["test"]["error"], record["sparsity"], ratio(record["compression"]), record["seconds"]]
        rows.append([*(outcome["overrides"].get(key) for key in varied), *figures, outcome["status"], outcome["id"]])
    headers = [*varied, "test error %", "sparsity %", "compression", "seconds", "status", "run"]
    formats = [*[""] * len(varied), ".2f", ".2f", "", ".0f", "", ""]
    table = tabulate(rows, headers=headers, floatfmt=formats, missingval="-", disable_numparse=list(range(len(varied))))
    counts = [f"{sum(o['status'] == status for o in outcomes)} {status}" for status in ("done", "skipped", "failed")]
    failures = [
        f"failed: {outcome['id'] or outcome['label']}: {outcome['message']}" for outcome in outcomes if outcome["message"]
    ]
    return "\n".join([table, "", ", ".join(counts), *failures])


def _keys(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome["overrides"]))
