"""How long a run will take, from those that are done."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from ..config import Config
from ..data import sources
from ..layers import weight_layers
from ..models import Model
from ..runs import Record


def expected_seconds(config: Config, records: Sequence[Record], device: str = "cpu") -> float | None:
    """Time of a run from the epochs of what ``device`` (cpu or cuda) finished of its network and data set; None without.

    Runs of the same method say more than others; where there are some, they alone count. Where this width was never trained,
    other widths of the network count, their time taken as proportional to their weights.
    """
    wanted = config.as_dict()
    known = [
        r
        for r in records
        if r["epochs"]
        and r["model"] == config.model.name
        and _agrees(r["config"]["dataset"], wanted["dataset"])
        and r["provenance"]["device"].startswith("cpu") == (device == "cpu")
    ]
    known = [r for r in known if r["method"] == config.method.name] or known
    alike = [r for r in known if _agrees(r["config"]["model"], wanted["model"])]
    if known and not alike:
        weights = _weights(config)
        alike = [{**r, "seconds": r["seconds"] * weights / r["weights"]} for r in known]
    rates = [r["seconds"] / r["epochs"] * r["config"]["train"]["batch_size"] for r in alike]
    return statistics.median(rates) * config.train.epochs / config.train.batch_size if rates else None


def _agrees(recorded: Record, wanted: Record) -> bool:
    """In all that the record knows: it can be older than a setting."""
    return all(wanted.get(key) == value for key, value in recorded.items())


def _weights(config: Config) -> int:
    known = sources.KNOWN[config.dataset.name]
    assert isinstance(config.model, Model)
    with torch.device("meta"):
        network = config.model.build((known.shape[2], *known.shape[:2]), known.classes)
    return sum(layer.weight.numel() for _, layer in weight_layers(network))
