"""How well a network knows what it does not know."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...counts import at_threshold
from ...data import ImageSplit, sources
from ...tasks.classification import auroc, entropy, log_probabilities, metrics
from .base import Effort, Networks, measure, timed


@measure("uncertainty")
def uncertainty(networks: Networks, data_dir: Path, effort: Effort) -> dict[str, Any]:
    """Quality and calibration of three predictions on the test set, and how well their entropy tells Fashion-MNIST from it.

    ``thresholded``: the network that evaluation uses; ``mean``: no weight removed; ``sampled``: averaged over noisy passes.
    """
    other = sources.load("fashion_mnist", data_dir)
    found: dict[str, Any] = {}
    for (name,) in timed([(name,) for name in networks]):
        for model, data in networks[name]:
            pixels, labels = torch.from_numpy(other.test_images), torch.from_numpy(other.test_labels).long()
            assert isinstance(data.test, ImageSplit)
            fashion = replace(data.test, images=pixels, labels=labels)
            for way, samples, threshold in (("thresholded", 0, None), ("mean", 0, math.inf), ("sampled", effort.samples, None)):
                torch.manual_seed(0)
                with at_threshold(model, threshold) if threshold else contextlib.nullcontext():
                    known, unknown = (log_probabilities(model, split, samples) for split in (data.test, fashion))
                record = {**metrics(known, data.test.labels), "auroc": auroc(entropy(known), entropy(unknown))}
                found.setdefault(f"{way} {name}", []).append(record)
    return found
