"""svdo: variational dropout, measured.

model = svdo.convert(network, "sparsevd")
loss = cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train
for layer in svdo.sparsity(model): ...
"""

from .config import UserError
from .conversion import advance, convert, kl
from .layers import sampling
from .prune import LayerSparsity, at_threshold, compression, masks, sparsity, storage

__all__ = [
    "LayerSparsity",
    "UserError",
    "advance",
    "at_threshold",
    "compression",
    "convert",
    "kl",
    "masks",
    "sampling",
    "sparsity",
    "storage",
]
