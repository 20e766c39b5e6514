"""A pipeline that never runs empty: as many batches in flight as there are stages, each stage at work on one of them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from optsched.cost.breakdown import OVERHEADS, breakdown
from optsched.cost.estimate import decode_step
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.precision import double_precision
from optsched.cost.tables import replica_parameters
from optsched.domain.hardware import Link, Tier
from optsched.domain.llm import Llm
from optsched.errors import SpecError

# Operations that one stage alone has, the last one; all others are spread over the layers.
_LAST_STAGE = ("lm head", "sampling")
_BETWEEN_STAGES = "stage hand over"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Decoding in a pipeline of several stages.

    Attributes
    ----------
    batches, sequences
        Batches in flight, one per stage, and sequences of each.
    latency_s
        Time between two tokens of a sequence: a batch passes all stages, and waits for the slowest one.
    interval_s
        Time between two batches that leave the pipeline.
    tokens_per_s
        Of all batches together.
    alone_tokens_per_s
        If all sequences were one batch, and the other stages waited for the one that works.
    """

    batches: int
    sequences: float
    latency_s: float
    interval_s: float
    tokens_per_s: float
    alone_tokens_per_s: float


@double_precision
def steady_pipeline(
    llm: Llm,
    tier: Tier,
    *,
    pp: int,
    tp: int = 1,
    batch: int,
    context_tokens: int,
    link: Link | None = None,
    expert_parallel: bool = False,
) -> Pipeline:
    """Return what a full pipeline yields while it decodes.

    Parameters
    ----------
    llm, tier, tp, pp, link, expert_parallel
        The replica, as in `optsched.cost.tables.step_law`.
    batch, context_tokens
        Sequences of the whole replica, which are divided evenly into one batch per stage, and cached tokens of each.

    Raises
    ------
    SpecError
        If there are fewer sequences than stages, or the llm cannot be split so.

    Notes
    -----
    A stage has its share of the layers, the longest one ``ceil(layers / pp)`` of them and, if it is the last, the LM head; it
    hands over one batch and takes the next, so that a batch leaves every ``interval``: the slowest stage with one hand-over,
    and at least the time between steps, in which the engine schedules. A batch comes around once all others have, so that the
    latency is ``pp`` intervals, or its own way through all stages and the engine if that takes longer. How far an engine
    hides its scheduling behind the stages is assumed (altogether); no pipeline has been held against measurements.
    """
    if batch < pp:
        raise SpecError(f"batch {batch} leaves some of {pp} stages without a sequence; raise --batch, or lower --pp")
    parameters, shape = replica_parameters(llm, tier, tp=tp, pp=pp, link=link, expert_parallel=expert_parallel)
    share = decode_step(llm, batch, context_tokens)
    one = jax.tree.map(lambda leaf: np.asarray(leaf) / pp, share)
    rows = {row.name: row.seconds for row in breakdown(parameters, shape, one)}
    overhead_s = rows.pop(OVERHEADS[2], 0.0)
    head_s = sum(rows.pop(name, 0.0) for name in _LAST_STAGE)
    hand_over_s = rows.pop(_BETWEEN_STAGES, 0.0) / max(pp - 1, 1)
    layers_s = sum(rows.values()) * (-(-llm.num_layers // pp) / llm.num_layers)
    interval_s = max(layers_s + head_s + hand_over_s, overhead_s)
    alone_s, through_s = (float(evaluate_steps(parameters, shape, each.rows()).seconds[0]) for each in (share, one))
    latency_s = max(pp * interval_s, through_s)
    return Pipeline(
        batches=pp,
        sequences=batch / pp,
        latency_s=latency_s,
        interval_s=interval_s,
        tokens_per_s=batch / latency_s,
        alone_tokens_per_s=batch / alone_s,
    )
