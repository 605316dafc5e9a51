"""What is said of a loss that is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import weight_layers
from .state import Progress


def not_finite(model: nn.Module, inputs: Tensor | None, progress: Progress, steps: int) -> UserError:
    """Names the first layer whose parameters or, given the batch's ``inputs``, output are not finite."""
    place = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if place is None and inputs is not None:
        place = _first_overflow(model, inputs)
    step = min(progress.step + 1, steps)
    return UserError(
        f"the loss is not finite at epoch {progress.epoch + 1}, step {step} (first seen in {place or 'the loss itself'});"
        " the last good checkpoint is kept; try a smaller train.lr"
    )


def _first_overflow(model: nn.Module, inputs: Tensor) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not torch.isfinite(output).all():
                found.append(name)

        return look

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in weight_layers(model)]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None
