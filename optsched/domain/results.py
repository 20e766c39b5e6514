"""The figures that a simulated and an observed execution share, computed by the same lines of code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import Field

from optsched.domain.frozen import Frozen

if TYPE_CHECKING:
    from optsched.domain.log import ExecutionLog
    from optsched.domain.scenario import LatencyTarget, Slo
    from optsched.domain.workload import Workload

Array = np.ndarray
Clock = Literal["true", "paper"]


class Quantiles(Frozen):
    """Mean and percentiles (linear interpolation); None where nothing was measured."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Float64[Array, " n"]) -> Quantiles:
        """Summarise values; NaN entries (never happened) are left out."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(mean=None, p50=None, p95=None, p99=None)
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        return cls(mean=float(values.mean()), p50=float(p50), p95=float(p95), p99=float(p99))


class Normalised(Frozen):
    """Latencies divided by the same conversation's standalone latency; TBT gaps of last turns are pooled."""

    ttfet: Quantiles
    last_turn_tbt: Quantiles
    e2e: Quantiles


class Tokens(Frozen):
    """Appended input tokens and output tokens."""

    prompt: int
    output: int


class Metrics(Frozen):
    """What a workload experienced. Energy is None where nothing metered it.

    Attributes
    ----------
    clock
        ``true``: from arrival, every queue included. ``paper``: prefiller queueing and decoder-admission waits left
        out, as ConServe (arXiv 2606.01839) measures; only for reproducing it.
    slo_attainment
        Share of conversations that meet every target: the worst TTFT and TPOT of their turns, their TTFET and E2E, and
        the mean gap between tokens of their last turn.
    slo_violations
        Share of conversations that miss each target.
    tokens_per_joule, context_tokens_per_joule
        Appended input and output tokens per joule; and the whole context of every turn counted again, per joule.
    """

    clock: Clock
    ttft_s: Quantiles
    ttfet_s: Quantiles
    tbt_s: Quantiles
    tpot_s: Quantiles
    e2e_s: Quantiles
    normalised: Normalised
    slo_attainment: float = Field(ge=0, le=1)
    slo_violations: dict[str, float] = {}
    effective_throughput_per_s: float | None = None
    makespan_s: float = Field(ge=0)
    tokens: Tokens
    tokens_per_s: float = Field(ge=0)
    energy_j: float | None
    tokens_per_joule: float | None
    context_tokens_per_joule: float | None
    cost_usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class StandaloneLatency:
    """Latency of each conversation (or turn) with nothing else running.

    Attributes
    ----------
    ttft_s, tpot_s
        Per turn.
    ttfet_s, e2e_s, last_turn_tbt_s
        Per conversation. TPOT and TBT are NaN for turns of a single token.
    """

    ttft_s: Float64[Array, " T"]
    tpot_s: Float64[Array, " T"]
    ttfet_s: Float64[Array, " C"]
    e2e_s: Float64[Array, " C"]
    last_turn_tbt_s: Float64[Array, " C"]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies of one execution on one clock; per turn, per conversation, and per gap between tokens.

    Nothing is there per gap where the execution did not keep the times of its tokens.
    """

    ttft_s: Float64[Array, " T"]
    tpot_s: Float64[Array, " T"]
    ttfet_s: Float64[Array, " C"]
    e2e_s: Float64[Array, " C"]
    last_turn_tbt_s: Float64[Array, " C"]
    tbt_s: Float64[Array, " G"]
    last_turn_gap_normalised: Float64[Array, " H"]

    @classmethod
    def of(cls, log: ExecutionLog, workload: Workload, standalone: StandaloneLatency, clock: Clock) -> Latencies:
        """Derive the latencies of an execution.

        Parameters
        ----------
        log, workload
            The execution and what was executed; turns in the same order.
        standalone
            Latencies with nothing else running.
        clock
            ``paper`` leaves out `ExecutionLog.queue_s` and `ExecutionLog.admission_s`.
        """
        first, last = workload.first_turn[:-1], workload.first_turn[1:] - 1
        queue = log.queue_s if clock == "paper" else np.zeros(workload.num_turns)
        admission = log.admission_s if clock == "paper" else np.zeros(workload.num_turns)
        left_out = np.concatenate([[0.0], np.cumsum(queue + admission)])
        whole = left_out[last + 1] - left_out[first]
        before_last = left_out[last] - left_out[first] + queue[last]

        outputs = workload.output_tokens
        steps = np.where(outputs > 1, outputs - 1, np.nan)
        tpot = (log.end_s - log.first_token_s - admission) / steps

        token_s, turn_of_token = np.empty(0), np.empty(0, np.int64)
        if log.token_s is not None:
            token_s, turn_of_token = log.token_s, np.repeat(np.arange(workload.num_turns), outputs)
        gaps = np.diff(token_s)
        inside = turn_of_token[1:] == turn_of_token[:-1]
        turn_of_gap = turn_of_token[1:][inside]
        gaps = gaps[inside]
        first_gap = np.concatenate([[True], turn_of_gap[1:] != turn_of_gap[:-1]]) if len(gaps) else np.zeros(0, bool)
        gaps = gaps - np.where(first_gap, admission[turn_of_gap], 0.0)
        is_last = np.zeros(workload.num_turns, bool)
        is_last[last] = True
        in_last = is_last[turn_of_gap]
        reference = standalone.last_turn_tbt_s[workload.conversation_of_turn[turn_of_gap]]
        return cls(
            ttft_s=log.first_token_s - log.arrival_s - queue,
            tpot_s=tpot,
            ttfet_s=log.first_token_s[last] - log.arrival_s[first] - before_last,
            e2e_s=log.end_s[last] - log.arrival_s[first] - whole,
            last_turn_tbt_s=tpot[last],
            tbt_s=gaps,
            last_turn_gap_normalised=(gaps / reference)[in_last],
        )

    def misses(self, slo: Slo, standalone: StandaloneLatency, workload: Workload) -> dict[str, Bool[Array, " C"]]:
        """Tell for each target which conversations miss it; a latency that never came (NaN TTFT, TTFET, E2E) is a miss."""
        first = workload.first_turn[:-1]

        def worst(values: Float64[Array, " T"], limit: Float64[Array, " T"], absent: float) -> Bool[Array, " C"]:
            return np.maximum.reduceat(np.where(np.isfinite(values), values, absent) > limit, first)

        def limit(target: LatencyTarget, reference: Float64[Array, " n"]) -> Float64[Array, " n"]:
            if target.seconds is not None:
                return np.full(len(reference), target.seconds)
            assert target.standalone_factor is not None
            return np.where(np.isfinite(reference), reference * target.standalone_factor, np.inf)

        found: dict[str, Bool[Array, " C"]] = {}
        if slo.ttft is not None:
            found["ttft"] = worst(self.ttft_s, limit(slo.ttft, standalone.ttft_s), np.inf)
        if slo.tpot is not None:
            found["tpot"] = worst(self.tpot_s, limit(slo.tpot, standalone.tpot_s), 0.0)
        if slo.tbt is not None:
            own = np.where(np.isfinite(self.last_turn_tbt_s), self.last_turn_tbt_s, 0.0)
            found["tbt"] = own > limit(slo.tbt, standalone.last_turn_tbt_s)
        if slo.ttfet is not None:
            found["ttfet"] = ~(self.ttfet_s <= limit(slo.ttfet, standalone.ttfet_s))
        if slo.e2e is not None:
            found["e2e"] = ~(self.e2e_s <= limit(slo.e2e, standalone.e2e_s))
        return found


def measure(
    log: ExecutionLog,
    workload: Workload,
    standalone: StandaloneLatency,
    slo: Slo,
    *,
    clock: Clock = "true",
    energy_j: float | None,
    cost_usd_per_hour: float | None,
) -> Metrics:
    """Compute the figures of one execution.

    Parameters
    ----------
    log
        The execution, simulated or observed.
    workload
        What was executed.
    standalone
        Latencies with nothing else running, for the normalised figures and relative targets.
    slo
        The latency targets.
    clock
        ``true`` or ``paper``.
    energy_j, cost_usd_per_hour
        Energy of the whole execution and price of the fleet; None if unknown.
    """
    latency = Latencies.of(log, workload, standalone, clock)
    misses = latency.misses(slo, standalone, workload)
    missed = np.zeros(workload.num_conversations, bool)
    for miss in misses.values():
        missed |= miss
    prompt, output = int(workload.new_tokens.sum()), int(workload.output_tokens.sum())
    context = int((workload.context_before + workload.new_tokens + workload.output_tokens).sum())
    makespan = log.makespan_s
    return Metrics(
        clock=clock,
        ttft_s=Quantiles.of(latency.ttft_s),
        ttfet_s=Quantiles.of(latency.ttfet_s),
        tbt_s=Quantiles.of(latency.tbt_s) if log.gaps is None or clock == "paper" else log.gaps.pooled,
        tpot_s=Quantiles.of(latency.tpot_s),
        e2e_s=Quantiles.of(latency.e2e_s),
        normalised=Normalised(
            ttfet=Quantiles.of(latency.ttfet_s / standalone.ttfet_s),
            last_turn_tbt=Quantiles.of(latency.last_turn_gap_normalised),
            e2e=Quantiles.of(latency.e2e_s / standalone.e2e_s),
        ),
        slo_attainment=float(1 - missed.mean()) if len(missed) else 1.0,
        slo_violations={name: float(miss.mean()) for name, miss in misses.items()},
        makespan_s=makespan,
        tokens=Tokens(prompt=prompt, output=output),
        tokens_per_s=output / makespan if makespan > 0 else 0.0,
        energy_j=energy_j,
        tokens_per_joule=(prompt + output) / energy_j if energy_j else None,
        context_tokens_per_joule=context / energy_j if energy_j else None,
        cost_usd_per_hour=cost_usd_per_hour,
    )
