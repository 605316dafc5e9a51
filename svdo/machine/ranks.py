"""How many processes train one network together, and which of them this is: the one place that knows."""

from __future__ import annotations

import os

from ..errors import UserError


def world_size() -> int:
    """How many processes were started for one training, as torchrun says it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def require_one() -> None:
    """Raise ``UserError`` where several processes were started for one run: they would wait for each other's lock."""
    if world_size() > 1:
        raise UserError(
            f"WORLD_SIZE={world_size()}: a run is trained by one process; start svdo-run without torchrun, and a sweep's runs"
            " beside each other with hydra/launcher=joblib"
        )
