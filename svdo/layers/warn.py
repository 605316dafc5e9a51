"""What a converted network says when it is handed to torch's own exporters as it is."""

from __future__ import annotations

import warnings

import torch

MESSAGE = (
    "a converted network is being exported as it is: its file holds the noise's parameters and works out the removal of weights"
    " at every call; export svdo.plain(model), or svdo.compact(model, example).module, instead"
)


_is_exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.4 has none


def exporting() -> bool:
    """Whether torch.export or torch.jit.trace, by one of which torch.onnx goes too, is following this pass."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return _is_exporting is not None and bool(_is_exporting())


def warn_of_export() -> None:
    """Warn where the pass is an exporter's; called by a noisy layer's evaluation. Python shows it once per place."""
    if exporting():
        warnings.warn(MESSAGE, stacklevel=2)
