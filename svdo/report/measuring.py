"""A report's measurement, made once and kept as ``results/measured/NAME.json``."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import datetime, timezone

import torch

from .. import machine, train
from ..errors import UserError
from ..runs import with_weights
from ..runs.disk import hold, write_atomically
from . import measures
from .evidence import Evidence, kept_measurement, measurement_file, network_ids


def measure(evidence: Evidence) -> None:
    """Make the report's measurement unless another process has: one at a time, since some take the time of what they do."""
    report, results_dir = evidence.report, evidence.results_dir
    folder = measurement_file(report, results_dir).parent
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        hold(held, lambda: print("another process is measuring; waiting for it to end", flush=True))
        if kept_measurement(report, results_dir, evidence.needs) is None:
            _measure(evidence)
    finally:
        os.close(held)


def _measure(evidence: Evidence) -> None:
    """Keep by row one record per network, what the report's figures show, and how all of it came about."""
    report = evidence.report
    print(f"\n=== measuring {report.measure}", flush=True)
    clock, measured_in = time.perf_counter(), replace(evidence.runtime, precision="fp32")  # whatever its networks' is
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if evidence.runtime.threads:
        torch.set_num_threads(evidence.runtime.threads)
    provenance = machine.provenance(measured_in, torch.device("cpu"), started)  # now: a checkout can move on meanwhile
    measured_by = measures.find(report.measure)
    networks: measures.Networks = {}
    for name, runs in evidence.needs.items():
        networks[name] = []
        for run in runs:
            place = with_weights(run.config.results_dir, run.config.id)
            if place is None:
                raise UserError(f"{run.config.id} has no weights; svdo-report run {report.name} trains it again")
            networks[name].append(train.trained(run.config, place))
    try:
        found = measured_by(networks, evidence.data_dir, measures.TOY if report.quick else measures.Effort())
    except ImportError as error:
        raise UserError(f"measuring {report.measure} needs more: {error}; pip install '.[plot]'") from None
    found |= {
        "networks": network_ids(evidence.needs),
        "seconds": round(time.perf_counter() - clock, 3),
        "provenance": provenance,
    }
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    write_atomically(measurement_file(report, evidence.results_dir), lambda file: file.write(text.encode()))
