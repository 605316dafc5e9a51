"""Batch-norm statistics of the network that is evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import require
from .layers import check_module, check_shaped


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Set the running means and variances of batch norm to those of the thresholded mean network over ``batches`` of inputs.

    Training sees activations with noise and with the weights that are removed later, so its running statistics are not those of
    the network that is evaluated. Take batches as training augments them: the layers are used to those. All batches, tensors
    that the model takes, count alike; one smaller than the first is left out. A batch norm that no batch reaches keeps its
    statistics. Returns whether there was a batch norm. The model's modes are kept.

    Raises:
        UserError: where there are no batches, or one is no tensor; the statistics then stay what they were, as they do when
            the model fails.
    """
    check_module("reestimate_batch_norm", model)
    check_shaped(model)
    require(not isinstance(batches, Tensor), "batches is one tensor; give a list of batches")
    require(isinstance(batches, Iterable), f"batches is a {type(batches).__name__}; give a list of batches")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return False
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
            norm.train()
        size = 0
        for x in batches:
            require(isinstance(x, Tensor), f"a batch is a {type(x).__name__}; give the inputs alone: (x for x, _ in loader)")
            size = size or len(x)
            if len(x) >= size:
                model(x)
        require(size > 0, "no batches to estimate batch norm from")
        for norm, buffers in zip(norms, before, strict=True):
            if not norm.num_batches_tracked:
                norm.load_state_dict(buffers, strict=False)
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, was_training in modes:
            module.training = was_training
    return True
