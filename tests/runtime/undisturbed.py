"""What every execution must yield, whatever happens to it; import as ``from undisturbed import ...``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from factories import TINY

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.runtime.cluster import _Run
from optsched.runtime.fleet import Fleet
from optsched.runtime.gpus import on_gpus
from optsched.runtime.messages import Setup
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.setups import worker_setups
from optsched.runtime.step import forward

SEED = 3
_MODEL = Transformer(TINY, random_weights(TINY, SEED, torch.float64))


def exact_setups(plan: Plan, workload: Workload, patience_s: float = 60.0, device: str = "cpu") -> list[Setup]:
    """Return setups of workers that compute in float64."""
    setups = [replace(setup, double=True) for setup in worker_setups(plan, workload, SEED, device, patience_s)]
    return setups if device == "cpu" else on_gpus(setups, torch.cuda.device_count())


def undisturbed_tokens(workload: Workload) -> np.ndarray:
    """Return the output tokens of all turns by the forward pass without cache, one token after the other."""
    found: list[int] = []
    for conversation, turns in enumerate(workload):
        known: list[int] = []
        for number, turn in enumerate(turns):
            known += prompt_tokens(SEED, conversation, number, int(workload.new_tokens[turn]), TINY.vocab_size).tolist()
            for _ in range(int(workload.output_tokens[turn])):
                known.append(int(forward(_MODEL, torch.tensor(known))[-1].argmax()))
                found.append(known[-1])
    return np.array(found)


def run_on(
    fleet: Fleet, plan: Plan, workload: Workload, limit_s: float = 120.0, patience_s: float = 60.0
) -> tuple[ExecutionLog, np.ndarray]:
    """Run a workload on workers that have started; return the log and the output tokens of all turns."""
    run = _Run(plan, workload, fleet, SEED, "cpu", patience_s)
    log = run.to_the_end(limit_s, None)
    return log, run.observed.token_id
