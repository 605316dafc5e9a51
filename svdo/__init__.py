"""svdo: variational dropout, measured.

model = svdo.convert(network, "sparsevd")
loss = cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train
for layer in svdo.sparsity(model): ...

Importing it takes no time: what a name needs, torch above all, is imported when the name is first asked for. So a program says
what it has to say, and stops when it is asked to, from its first moment on.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_norm import reestimate_batch_norm
    from .conversion import advance, convert, kl, parameter_groups, plain
    from .counts import LayerSparsity, at_threshold, compression, evaluation_weights, masks, sparsity, storage
    from .errors import UserError
    from .export.compact import compact
    from .export.files import load, save
    from .layers import sampling

__all__ = [
    "LayerSparsity",
    "UserError",
    "advance",
    "at_threshold",
    "compact",
    "compression",
    "convert",
    "evaluation_weights",
    "kl",
    "load",
    "masks",
    "parameter_groups",
    "plain",
    "reestimate_batch_norm",
    "sampling",
    "save",
    "sparsity",
    "storage",
]

_HOME = {
    "batch_norm": ("reestimate_batch_norm",),
    "conversion": ("advance", "convert", "kl", "parameter_groups", "plain"),
    "counts": (
        "LayerSparsity",
        "at_threshold",
        "compression",
        "evaluation_weights",
        "masks",
        "sparsity",
        "storage",
    ),
    "errors": ("UserError",),
    "export.compact": ("compact",),
    "export.files": ("load", "save"),
    "layers": ("sampling",),
}


def __getattr__(name: str) -> Any:
    """A public name, imported now, or a part of the package (PEP 562)."""
    for module, names in _HOME.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
