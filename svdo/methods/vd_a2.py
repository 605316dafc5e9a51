"""Variational dropout, type A2 (Kingma, Salimans, Welling 2015): type A with its KL divided by 3.

    loss = -log likelihood + KL / 3

The best of the seven regularisers in the 2015 MNIST experiment.
"""

from dataclasses import dataclass
from typing import ClassVar

from .base import method
from .vd_a import VDA


@method
@dataclass
class VDA2(VDA):
    """The fields of type A."""

    label: ClassVar[str] = "Variational dropout A2"
    kl_scale: ClassVar[float] = 1.0 / 3.0
    name: str = "vd_a2"
