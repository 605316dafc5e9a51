"""After training: make the network what is kept of it, then describe it; describing changes nothing."""

from __future__ import annotations

import math

import torch

from ..batch_norm import reestimate_batch_norm
from ..conversion import advance
from ..counts import compression, sparsity, storage
from ..errors import UserError
from ..layers import dropout_rates, noisy_layers
from ..runs import Record
from .job import Job

SAMPLES = 10  # noisy passes in the sampled evaluation of a record


def finalise(job: Job) -> Record:
    """Bring the evaluated network into its last state; what only the states before it show is returned for the record.

    The best epoch's weights come back where they were asked for, methods with phases take their last step, and where weights
    were removed batch-norm statistics are estimated anew.
    """
    config, state, task, data = job.config, job.state, job.task, job.data
    if state.best:
        state.evaluated.load_state_dict(state.best)
    model, all_steps = state.evaluated, config.train.epochs * job.steps
    advance(model, all_steps, all_steps)
    seen: Record = {"best_epoch": state.progress.best_epoch} if state.best else {}
    if any(layer.noise.random for _, layer in noisy_layers(model)):
        torch.manual_seed(config.seed)
        seen["test_sampled"] = {"samples": SAMPLES, **task.evaluate(model, data.test, samples=SAMPLES)}
    if job.method.sparsifies:
        before = task.evaluate(model, data.test)
        if reestimate_batch_norm(model, job.augmented()) and state.averaged is None:  # an average never had training's
            seen["test_running_statistics"] = before
    if state.lines:
        seen["objective"] = state.lines[(state.progress.best_epoch or len(state.lines)) - 1]["train_loss"]
    return seen


def describe(job: Job, seen: Record) -> Record:
    """The record of the finalised network, ``seen`` being what ``finalise`` gave.

    Raises:
        UserError: where its test loss is not finite: of a network that was not trained, since epochs look for themselves.
    """
    config, state, task, data = job.config, job.state, job.task, job.data
    model, progress = state.evaluated, state.progress
    *earlier, last = state.origins
    provenance = {**last, "started": state.origins[0]["started"]} | ({"earlier": earlier} if earlier else {})
    layers, rates, ratio, size = sparsity(model), dropout_rates(model), compression(sparsity(model)), storage(model)
    weights, nonzero = sum(layer.weights for layer in layers), sum(layer.nonzero for layer in layers)
    record: Record = {
        "schema": 1,
        "id": config.id,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "task": task.name,
        "headline": vars(task.headline),
        "data": {**vars(data.spec), "shape": list(data.spec.shape), "dtype": str(data.spec.dtype).removeprefix("torch.")},
        "seed": config.seed,
        "config": config.as_dict(),
        "test": task.evaluate(model, data.test),
        "train": task.evaluate(model, data.train),
        "layers": [{**vars(layer), "sparsity": layer.sparsity, "rate": rates.get(layer.name)} for layer in layers],
        "weights": weights,
        "nonzero": nonzero,
        "sparsity": 100.0 * (1.0 - nonzero / weights),
        "compression": ratio if math.isfinite(ratio) else None,
        "storage": size if math.isfinite(size) else None,
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 3),
        "core_seconds": round(progress.core_seconds, 3),
        "provenance": provenance,
    }
    if data.validation is not None:
        record["validation"] = task.evaluate(model, data.validation)
    if not math.isfinite(record["test"]["nll"]):
        raise UserError("the test loss is not finite: the network starts too large; nothing was written")
    return record | seen
