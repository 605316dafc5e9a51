"""svdo: variational dropout, measured.

model = svdo.convert(network, "sparsevd")
loss = cross_entropy(model(x), y) + kl_weight * svdo.kl(model) / n_train
for layer in svdo.sparsity(model): ...
"""

from .batch_norm import reestimate_batch_norm
from .conversion import advance, convert, kl, parameter_groups, plain
from .counts import LayerSparsity, at_threshold, compression, evaluation_weights, masks, sparsity, storage
from .errors import UserError
from .layers import sampling

__all__ = [
    "LayerSparsity",
    "UserError",
    "advance",
    "at_threshold",
    "compression",
    "convert",
    "evaluation_weights",
    "kl",
    "masks",
    "parameter_groups",
    "plain",
    "reestimate_batch_norm",
    "sampling",
    "sparsity",
    "storage",
]
