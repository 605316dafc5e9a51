"""What a person reads while and after a run trains: plain text, no decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..config import Config
from ..counts import LayerSparsity
from ..data import Dataset
from ..objective import describe
from ..runs import Record
from ..tasks import Headline

MANY = 8  # layers; more columns than that leave a terminal


def say(text: str) -> None:
    """A line of output, now."""
    print(text, flush=True)


def plan(config: Config, device: str, sizes: dict[str, int], weights: int, n_train: int | None, folder: str) -> str:
    """What is about to happen, a line per subject; ``n_train`` is what a KL is divided by, where there is one."""
    assert isinstance(config.dataset, Dataset)
    train, dataset = config.train, config.dataset
    data = ", ".join(f"{count:,} {part}" for part, count in sizes.items() if count).replace(",", " ").replace("  ", ", ")
    training = [f"{train.epochs} epochs", f"batch {train.batch_size}", train.optimizer]
    training += [f"lr {train.lr:g} falling from {train.lr_flat:.1%} of training"]
    training += [f"L2 {train.weight_decay:g}"] if train.weight_decay else []
    if n_train is not None:
        training += [f"KL weight 0 to {train.kl_weight * train.kl_peak:g} between {train.kl_start:.1%} and {train.kl_full:.1%}"]
        training += [f"then to {train.kl_weight:g} at {train.kl_settled:.1%}"] if train.kl_peak > 1 else []
    lines = [
        ("run", config.id),
        ("model", f"{config.model.name}, {weights:,} weights".replace(",", " ").replace("  ", ", ")),
        ("data", f"{dataset.name}: {'; '.join([data, *dataset.notes()])}"),
        ("method", config.method.name + (f", from {config.pretrained}" if config.pretrained else "")),
        ("objective", describe(n_train)),
        ("training", ", ".join(training)),
        ("device", device),
        ("folder", folder),
    ]
    return "\n".join(f"{key:<10} {value}" for key, value in lines)


class EpochLines:
    """One aligned line per epoch, under a header that is printed once; of many layers, their sparsity together."""

    def __init__(self, epochs: int, layers: Sequence[LayerSparsity], held_out: str, headline: Headline) -> None:
        self._digits = max(len(str(epochs)), 2)
        self._epochs = epochs
        self._figures = f"train_{headline.name}", f"{held_out}_{headline.name}"
        self._weights = {layer.name: layer.weights for layer in layers}
        self._widths = {layer.name: max(len(layer.name), 6) for layer in layers} if len(layers) <= MANY else {}
        names = [name.rjust(width) for name, width in self._widths.items()] or ["sparsity"]
        self.header = "  ".join(
            [
                "epoch".rjust(2 * self._digits + 1),
                "loss".rjust(9),
                "KL".rjust(9),
                "KL wt",
                f"train {headline.unit}".rjust(7),
                f"{held_out[:5]} {headline.unit}".rjust(7),
                *names,
                "compression",
            ]
        )

    def line(self, record: Record) -> str:
        """The epoch's figures; sparsity in percent."""
        sparsity = record["sparsity"]
        columns = [f"{sparsity[name]:{width}.1f}" for name, width in self._widths.items()]
        if not columns:
            removed = sum(sparsity[name] * weights for name, weights in self._weights.items())
            columns = [f"{removed / max(sum(self._weights.values()), 1):8.1f}"]
        return "  ".join(
            [
                f"{record['epoch']:>{self._digits}}/{self._epochs:<{self._digits}}",
                f"{record['train_loss']:9.4f}",
                f"{record['kl']:9.3g}",
                f"{record['kl_weight']:5.3f}",
                *(f"{record[key]:7.2f}" for key in self._figures),
                *columns,
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
    headline = headline_of(record)
    parts = [
        f"{split} {headline.name} {record[split][headline.name]:.2f} {headline.unit}".rstrip()
        for split in ("test", "validation")
        if split in record
    ]
    parts += [f"compression {ratio(record['compression'])}", f"{record['epochs']} epochs", f"{record['seconds']:.0f} s"]
    return f"{table}\n\n{', '.join(parts)}"


def headline_of(record: Record) -> Headline:
    """What the record's network is compared by; records of older versions are all of classification."""
    return Headline(**record.get("headline", {"name": "error", "unit": "%"}))


def sweep_table(outcomes: Sequence[dict[str, Any]], records: Sequence[Record | None]) -> str:
    """A multirun's runs side by side: what varied between them, their figures, and done, skipped or failed."""
    varied = [key for key in _keys(outcomes) if len({str(outcome["overrides"].get(key)) for outcome in outcomes}) > 1]
    rows = []
    for outcome, record in zip(outcomes, records, strict=True):
        figures: list[Any] = [None] * 4
        if record is not None:
            figures = [
                record["test"][headline_of(record).name],
                record["sparsity"],
                ratio(record["compression"]),
                record["seconds"],
            ]
        rows.append([*(outcome["overrides"].get(key) for key in varied), *figures, outcome["status"], outcome["id"]])
    compared = dict.fromkeys(f"{item.name} {item.unit}" for item in map(headline_of, filter(None, records)))
    headers = [*varied, f"test {' or '.join(compared) or 'error %'}", "sparsity %", "compression", "seconds", "status", "run"]
    formats = [*[""] * len(varied), ".2f", ".2f", "", ".0f", "", ""]
    table = tabulate(rows, headers=headers, floatfmt=formats, missingval="-", disable_numparse=list(range(len(varied))))
    counts = [f"{sum(o['status'] == status for o in outcomes)} {status}" for status in ("done", "skipped", "failed")]
    failures = [
        f"failed: {outcome['id'] or outcome['label']}: {outcome['message']}" for outcome in outcomes if outcome["message"]
    ]
    return "\n".join([table, "", ", ".join(counts), *failures])


def _keys(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome["overrides"]))
