"""Time steps and cache hand-overs of real workers, with one, two, three of them busy at once: what calibration learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from optsched.batching.state import NO_PARAMETERS
from optsched.domain.llm import Llm
from optsched.domain.log import Steps
from optsched.domain.scenario import EngineSpec
from optsched.errors import SpecError
from optsched.runtime.fleet import Fleet
from optsched.runtime.gpus import on_gpus
from optsched.runtime.measuring import Measuring
from optsched.runtime.messages import Limits, Setup
from optsched.runtime.model.weights import refuse_what_cannot_run

Array = np.ndarray
_POOL_BYTES = 512e6
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed.

    Attributes
    ----------
    steps
        Every step: what it worked on, and how many replicas were busy.
    durations_s
        The whole time of each step, from the end of the one before (if there was no pause): scheduling, bookkeeping and
        reports included.
    handover_bytes, handover_s, handover_busy
        Size and duration of every cache that moved from one worker to another, and how many workers were in a step when it began
        to; empty if a single worker was measured.
    """

    steps: Steps
    durations_s: Float64[Array, " S"]
    handover_bytes: Float64[Array, " X"]
    handover_s: Float64[Array, " X"]
    handover_busy: Int64[Array, " X"]


def measure_steps(
    llm: Llm,
    *,
    replicas: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    seconds_budget: float = 9.0,
    engine: EngineSpec | None = None,
    policy: str = "vllm-chunked",
    device: str = "cpu",
    progress: Callable[[float, float], None] | None = None,
    once_warm: Callable[[], object] | None = None,
) -> Measured:
    """Run random conversations on real workers and time every step and hand-over.

    Parameters
    ----------
    llm
        What the workers run, with random weights.
    replicas
        Numbers of workers to keep busy at once, in turn.
    seed
        Seed of weights, lengths and prompts; no run that is judged later should use it.
    seconds_budget
        How long to measure steps, all numbers of workers together, the last one's to their end; starting the workers comes on
        top, and a quarter for hand-overs, or what some of each size take.
    engine
        Block size and limits of a step.
    policy
        Batching policy.
    device
        ``cpu`` or ``cuda``.
    progress
        Called with seconds done and in all.
    once_warm
        Called when the workers are warm, before anything is timed.

    Raises
    ------
    SpecError
        If the runtime cannot run the llm, or no number of workers is given.
    WorkerError
        If a worker fails.
    """
    refuse_what_cannot_run(llm)
    if not replicas or min(replicas) < 1 or seconds_budget <= 0:
        raise SpecError("measuring needs at least one worker and some seconds; raise them")
    engine = engine or EngineSpec(max_batched_tokens=min(512, llm.max_positions))
    setups = _setups(llm, max(replicas), seed, engine, policy, device)
    if device != "cpu":
        setups = on_gpus(setups, torch.cuda.device_count())
    with Fleet(setups) as fleet:
        if once_warm is not None:
            once_warm()
        run = Measuring(fleet, llm, engine, setups[0].kv_blocks, seed)
        # Interleaved, so that a drift of the machine's speed does not look like a slow-down by neighbours.
        levels = sorted(replicas) * _ROUNDS
        for done, busy in enumerate(levels, start=1):
            run.level(range(busy), seconds_budget * done / len(levels))
            if progress is not None:
                progress(seconds_budget * done / len(levels), seconds_budget)
        if max(replicas) > 1:
            run.handovers(seconds_budget / _ROUNDS)
    steps, moves = run.steps(), run.moves()
    neighbours = steps.busy_at(moves[:, 1], range(max(replicas)))
    return Measured(steps, steps.end_s - steps.start_s, moves[:, 0], moves[:, 2] - moves[:, 1], neighbours)


def _setups(llm: Llm, count: int, seed: int, engine: EngineSpec, policy: str, device: str) -> list[Setup]:
    block_bytes = engine.block_tokens * llm.kv_bytes_per_token
    kv_blocks = int(np.clip(_POOL_BYTES / block_bytes, 64, 8192))
    limits = Limits(
        policy,
        engine.block_tokens,
        int(engine.watermark * kv_blocks),
        engine.max_batched_tokens,
        engine.max_sequences,
        0.0,
        1e9,
        1e9,
        NO_PARAMETERS,
    )
    return [Setup(index, count, llm, None, seed, kv_blocks, limits, device) for index in range(count)]
