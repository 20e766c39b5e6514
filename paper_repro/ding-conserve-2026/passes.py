"""The artifact's evaluation in two runs: first turns through the prefiller, then the rest on decoders, at the times recorded.

References
----------
github.com/eicchen/conserve: ``scheduler.py``, ``conversation.py``, ``virtual_prefiller.py``, ``extract_arrival_traces.py`` in
``conserve``, and ``s5_metrics.py`` in ``paper/figures/section5/scripts``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

from .settings import Pause, Settings

Array = np.ndarray


@dataclass(frozen=True)
class Recorded:
    """The run of first turns (two output tokens each) through one prefiller.

    Attributes
    ----------
    arrival_s, execution_s, end_s
        When a turn arrived, was first computed on, and ended.
    decoder_s
        When its cache was at a decoder.
    prefill_j, prefill_w
        The prefiller's energy above idle, and its mean power while it computes.
    """

    arrival_s: Float64[Array, " C"]
    execution_s: Float64[Array, " C"]
    end_s: Float64[Array, " C"]
    decoder_s: Float64[Array, " C"]
    prefill_j: float
    prefill_w: float

    @property
    def window_s(self) -> float:
        """Time from the first arrival to the last end."""
        return float(self.end_s.max() - self.arrival_s.min())

    @property
    def served_per_s(self) -> float:
        """Conversations per second that the prefiller passes on."""
        return len(self.end_s) / float(self.decoder_s.max() - self.execution_s.min())


def record(plan: Plan, workload: Workload) -> Recorded:
    """Run the first turns alone."""
    first = replace(workload.head(turns=1), output_tokens=np.full(workload.num_conversations, 2))
    log = simulate(plan, first)
    at_decoder = np.empty(len(log.end_s))
    at_decoder[log.transfers.conversation] = log.transfers.end_s
    joules = float(log.dynamic_j[0]) if log.dynamic_j is not None else float("nan")
    own = log.steps.replica == 0
    busy_s = float((log.steps.end_s - log.steps.start_s)[own].sum())
    power_w = plan.replicas[0].coefficients.idle_w + joules / busy_s
    return Recorded(log.arrival_s, log.start_s, log.end_s, at_decoder, joules, power_w)


def replay(plan: Plan, workload: Workload, times_s: Float64[Array, " C"]) -> tuple[ExecutionLog, Workload]:
    """Run whole conversations that arrive at the given times, the first of them at 0; the times must not decrease."""
    arriving = workload.with_arrivals(times_s - times_s[0])
    return simulate(plan, arriving), arriving


@dataclass(frozen=True)
class Paused:
    """A replay in which wrongly placed turns pause.

    Attributes
    ----------
    queued_s
        What the blocks on the virtual prefiller add to each conversation's first turn.
    block_s
        Time that the blocks take of the prefiller, all together.
    passes, moved_s
        Passes until the pauses repeated, and how much the last one still moved any of them.
    """

    log: ExecutionLog
    workload: Workload
    queued_s: Float64[Array, " C"]
    block_s: float
    passes: int
    moved_s: float


def replay_with_pauses(
    settings: Settings, plan: Plan, workload: Workload, recorded: Recorded, wrong: Bool[Array, " T"]
) -> Paused:
    """Replay the decoders' run with pauses, which depend on when turns come: they are computed again until they repeat.

    Parameters
    ----------
    settings
        The pause's model, and the largest number of passes.
    plan
        Decoders behind a prefiller that costs nothing.
    workload
        The conversations.
    recorded
        The run of the first turns, as if it happened beside this one and both began together.
    wrong
        Turns that are wrongly sent away.
    """
    pause_s, passes, moved_s = np.zeros(workload.num_turns), 0, np.inf
    while True:
        log, arriving = replay(plan, replace(workload, gap_s=pause_s), recorded.decoder_s)
        asked, queued_s, block_s = pauses(settings.pause, workload, recorded, wrong, log.arrival_s - pause_s)
        moved_s, passes = float(np.abs(asked - pause_s).max()), passes + 1
        if moved_s < 1e-6 or passes == settings.passes:
            return Paused(log, arriving, queued_s, block_s, passes, moved_s)
        pause_s = asked


def pauses(
    model: Pause, workload: Workload, recorded: Recorded, wrong: Bool[Array, " T"], ready_s: Float64[Array, " T"]
) -> tuple[Float64[Array, " T"], Float64[Array, " C"], float]:
    """Return each turn's pause, what first turns are delayed, and the prefiller's time taken, all in seconds.

    A wrongly sent turn waits until every recorded first turn that has arrived has ended; then its block takes the prefiller, and
    first turns recorded to arrive during the block begin after it.

    Parameters
    ----------
    model, workload, recorded, wrong
        As of `replay_with_pauses`.
    ready_s
        When each turn could begin.
    """
    begin_s = recorded.arrival_s - recorded.arrival_s[0]
    lasts_s = recorded.end_s - recorded.arrival_s
    pause_s, delayed_s, block_s = np.zeros(workload.num_turns), begin_s.copy(), 0.0
    history = model.compound_tokens + workload.context_before
    turns = np.flatnonzero(wrong)
    for turn in turns[np.argsort(ready_s[turns], kind="stable")]:
        now_s, held, new = float(ready_s[turn]), int(history[turn]), int(workload.new_tokens[turn])
        in_flight = (delayed_s <= now_s) & (now_s < delayed_s + lasts_s)
        free_s = float((delayed_s + lasts_s)[in_flight].max(initial=now_s))
        hit_s = prefill_hit_s(model, held + new)
        pushed = (delayed_s >= free_s) & (delayed_s < free_s + hit_s)
        delayed_s[pushed] = free_s + hit_s
        pause_s[turn] = free_s - now_s + own_pause_s(model, held, new)
        block_s += hit_s
    return pause_s, delayed_s - begin_s, block_s


def own_pause_s(model: Pause, history_tokens: int, new_tokens: int) -> float:
    """Return what a turn sent away costs without any queue: both transfers, the prefill, and the bookkeeping of either side."""
    held, new = history_tokens, new_tokens
    books_s = 2 * (model.side_s + model.block_s * (held + new) / model.block_tokens)
    return transfer_s(model, held) + transfer_s(model, new) + prefill_hit_s(model, held + new) + books_s


def transfer_s(model: Pause, tokens: int) -> float:
    """Return the time to move a cache of so many tokens."""
    return model.short_transfer_s if tokens <= model.short_transfer_tokens else model.transfer_s + model.transfer_token_s * tokens


def prefill_hit_s(model: Pause, tokens: int) -> float:
    """Return the time of a prefill that finds all but a few of so many tokens cached."""
    return model.short_hit_s if tokens <= model.short_hit_tokens else model.hit_s + model.hit_token_s * tokens
