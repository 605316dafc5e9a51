"""The KL, exact and approximated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evidence import Evidence
from .base import Watched, figure
from .style import COLOURS, png, subplots


@figure("kl")
def draw(evidence: Evidence, watched: Sequence[Watched]) -> dict[str, bytes]:
    """-KL over log alpha, exact and approximated, and what the approximations miss."""
    assert evidence.measured is not None
    curves = {name: np.array(values, dtype=np.float64) for name, values in evidence.measured["curves"].items()}
    at, exact = curves.pop("log_alpha"), curves.pop("exact")
    figure, (left, right) = subplots(2, width=5.2, height=3.8)
    left.plot(at, -exact, color="black", linewidth=3, alpha=0.4, label="exact")
    names = {"sigmoid": "sigmoid (2017)", "cubic": "cubic (2015), α ≤ 1", "bound": "lower bound (2015), α ≤ 1"}
    for number, (name, label) in enumerate(names.items()):
        style = {"color": COLOURS[number], "linestyle": ("-", "--", ":")[number], "label": label}
        left.plot(at, -curves[name], **style)
        right.plot(at, exact - curves[name], **style)
    left.set(xlabel="log α", ylabel="−KL, nats")
    right.set(xlabel="log α", ylabel="approximation − exact, of −KL, nats", ylim=(-0.05, 0.05))
    left.legend(fontsize=8, frameon=False)
    right.grid(alpha=0.3)
    return {"png": png(figure)}
