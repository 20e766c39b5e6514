"""Turn published steps and runs into cases to fit to, or to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optsched.cost.features import StepFeatures, attended_pairs
from optsched.cost.samples import joined
from optsched.cost.shape import LlmShape
from optsched.cost.step_fit import StepCase
from optsched.cost.tier import TierParameters
from optsched.profiles.steps import RunRows, StepRows

Replica = Callable[[str, str, int, str], tuple[TierParameters, LlmShape]]


def prefill_batch(sequences: float, new_tokens: float, context_tokens: float = 0.0) -> StepFeatures:
    """Return the step that prefills a batch of equal prompts whole."""
    new = sequences * new_tokens
    return StepFeatures.of(
        prefill_tokens=np.array([new]),
        pairs=np.array([sequences * float(attended_pairs(new_tokens, context_tokens))]),
        prefill_context_tokens=np.array([sequences * context_tokens]),
        sequences=np.array([sequences]),
    )


def decode_batch(sequences: float, context_tokens: float) -> StepFeatures:
    """Return the decode step of a batch of equal contexts."""
    return StepFeatures.of(decode_sequences=np.array([sequences]), kv_tokens=np.array([sequences * context_tokens]))


def step_cases(rows: StepRows, replica: Replica) -> list[StepCase]:
    """Return one case per step.

    Parameters
    ----------
    rows
        What was measured.
    replica
        Parameters of a replica by llm, gpu, tp and engine.
    """
    cases = []
    for index in range(len(rows)):
        batch, new, context = (float(column[index]) for column in (rows.sequences, rows.new_tokens, rows.context_tokens))
        step = prefill_batch(batch, new, context) if rows.kind[index] == "prefill" else decode_batch(batch, context)
        place = replica(str(rows.llm[index]), str(rows.gpu[index]), int(rows.tp[index]), str(rows.engine[index]))
        cases.append(StepCase(*place, step, np.ones(1), seconds=float(rows.seconds[index])))
    return cases


def run_cases(rows: RunRows, replica: Replica, board_w: Callable[[str], float]) -> list[StepCase]:
    """Return one case per run: its prefill, and as many decode steps as tokens follow the first, at their mean context.

    Parameters
    ----------
    rows
        What was measured; times are not compared, powers are.
    replica
        As in `step_cases`.
    board_w
        Board power of a gpu by its name.
    """
    cases = []
    for index in range(len(rows)):
        batch, prompt, output = (float(column[index]) for column in (rows.sequences, rows.prompt_tokens, rows.output_tokens))
        steps = joined([prefill_batch(batch, prompt), decode_batch(batch, prompt + output / 2)])
        gpu = str(rows.gpu[index])
        place = replica(str(rows.llm[index]), gpu, int(rows.tp[index]), str(rows.engine[index]))
        watts = float(rows.power_share[index]) * board_w(gpu)
        cases.append(StepCase(*place, steps, np.array([1.0, output - 1.0]), watts=watts))
    return cases
