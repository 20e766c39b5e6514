"""What is recorded of one run: latencies over standalone, misses, energy, spans."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float64

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, Standalone
from optsched.domain.results import Clock, Latencies, StandaloneLatency
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload

from ..tables import Row
from .conversations import read_conversations
from .passes import Recorded
from .settings import Settings

Array = np.ndarray


def alone(settings: Settings, plan: Plan) -> StandaloneLatency:
    """Return the latencies of the conversations with nothing else running and without pauses."""
    source = (settings.trace, settings.recipe, settings.recipe_seed, settings.conversations, settings.turns)
    return _alone(plan.slo.standalone, *source)


@lru_cache(maxsize=8)
def _alone(
    reference: Standalone, trace: str | None, recipe: str, recipe_seed: int, conversations: int, turns: int
) -> StandaloneLatency:
    workload = read_conversations(trace, recipe, recipe_seed, conversations, turns)
    return standalone_latency(workload, reference.coefficients, reference.max_batched_tokens)


def latencies(
    settings: Settings, log: ExecutionLog, workload: Workload, standalone: StandaloneLatency, clock: Clock,
    added_s: Float64[Array, " C"] | float = 0.0,
) -> Row:  # fmt: skip
    """Return geometric means and tails of TTFET, last-turn TBT and E2E over standalone, and misses in per cent.

    Parameters
    ----------
    settings
        How many times standalone is a miss.
    log, workload
        The execution and what was executed.
    standalone
        Of the same conversations without pauses.
    clock
        What counts.
    added_s
        Added to every conversation's TTFET and E2E: its first turn, where that was run apart.
    """
    found = Latencies.of(log, workload, standalone, clock)
    values = {
        "ttfet": (found.ttfet_s + added_s) / standalone.ttfet_s,
        "tbt": found.last_turn_gap_normalised,
        "e2e": (found.e2e_s + added_s) / standalone.e2e_s,
    }
    mean_gap = found.last_turn_tbt_s / standalone.last_turn_tbt_s
    row: Row = {}
    for name, each in values.items():
        row[f"{name}_gm"] = float(np.exp(np.log(each).mean()))
        row[f"{name}_p95"] = float(np.percentile(each, 95))
        missed = mean_gap[np.isfinite(mean_gap)] if name == "tbt" else each
        row[f"{name}_misses"] = 100 * float((missed > settings.slo_factor).mean())
    row["ttfet_p99"], row["ttfet_max"] = float(np.percentile(values["ttfet"], 99)), float(values["ttfet"].max())
    row["tbt_p97"] = float(np.percentile(values["tbt"], 97))
    row["slow_gaps"] = 100 * float((values["tbt"] > settings.slo_factor).mean())
    return row


def context_tokens(workload: Workload) -> int:
    """Return the tokens of every turn's whole context and output, history counted again each turn."""
    return int((workload.context_before + workload.new_tokens + workload.output_tokens).sum())


def energy_apart(plan: Plan, log: ExecutionLog, recorded: Recorded, billed_s: float) -> tuple[float, float]:
    """Return the joules of a replay and its record: with the prefiller idle until the end, and without that.

    Parameters
    ----------
    plan
        The replay's plan.
    log, recorded
        Both runs; the prefiller's energy is the record's.
    billed_s
        Time of the prefiller billed besides at its mean power.
    """
    assert log.dynamic_j is not None
    idle_w = [replica.coefficients.idle_w for replica in plan.replicas]
    whole = float(log.dynamic_j[1:].sum()) + sum(idle_w[1:]) * log.makespan_s
    prefiller = recorded.prefill_j + plan.slo.standalone.coefficients.idle_w * recorded.window_s
    without = whole + prefiller + recorded.prefill_w * billed_s
    return without + plan.slo.standalone.coefficients.idle_w * max(0.0, log.makespan_s - recorded.window_s), without


def energy_together(plan: Plan, log: ExecutionLog) -> tuple[float, float]:
    """Return the joules of one run of all GPUs: with prefillers idle until the end, and without that."""
    assert log.dynamic_j is not None
    idle_w = sum(replica.coefficients.idle_w for replica in plan.replicas)
    whole = float(log.dynamic_j.sum()) + idle_w * log.makespan_s
    unused = 0.0
    for index, replica in enumerate(plan.replicas):
        if replica.role == "prefill":
            last_s = float(log.first_token_s[log.prefill_replica == index].max())
            unused += replica.coefficients.idle_w * (log.makespan_s - last_s)
    return whole, whole - unused


def energy_row(workload: Workload, joules: tuple[float, float]) -> Row:
    """Return context tokens per joule, with and without the prefiller's idle time, and the energy in kJ."""
    tokens = context_tokens(workload)
    return {"tpj": tokens / joules[0], "tpj_uncorrected": tokens / joules[1], "energy_kj": joules[0] / 1e3}
