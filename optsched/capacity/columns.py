"""What one replica of a type sustains: the columns of the fleet problem.

A replica at batch B computes, per conversation, its prompts (``p`` seconds) and B-th parts of the steps that decode its O tokens
(``t(B)`` each). So it sustains ``1 / (p + O t(B) / B)`` conversations per second, and a token takes ``t(B) + p B / O``: its own
step and the prompts that come between (Little's law, with every second spent on either). The operating batch is the largest
whose token time keeps the target and whose contexts fit the pool: the rate rises with B, and so does the token time.
Prefill replicas compute first turns only, decode replicas the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from optsched.capacity.classes import LengthClass
from optsched.domain.plan import PlanReplica

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Targets:
    """Latency targets in seconds that a column is held to; None: none.

    Attributes
    ----------
    first_token_s
        Of the first turn, without any wait.
    token_s
        Between tokens, on average.
    """

    first_token_s: float | None = None
    token_s: float | None = None


@dataclass(frozen=True, eq=False)
class Columns:
    """What each of A replica types sustains of each of J classes.

    Attributes
    ----------
    replicas
        One replica of each type.
    rate_per_s
        Conversations per second; 0 where a target or the pool forbids the class.
    batch
        The operating batch; 0 for prefill replicas.
    joules
        Energy above idle per conversation.
    reason
        Why a class is not served; empty where it is.
    """

    replicas: tuple[PlanReplica, ...]
    rate_per_s: Float64[Array, "A J"]
    batch: Int64[Array, "A J"]
    joules: Float64[Array, "A J"]
    reason: tuple[tuple[str, ...], ...]


def evaluate_columns(
    replicas: Sequence[PlanReplica], classes: Sequence[LengthClass], targets: Targets, *,
    block_tokens: int, max_batched_tokens: int, max_sequences: int,
) -> Columns:  # fmt: skip
    """Evaluate every type on every class.

    Parameters
    ----------
    replicas
        One of each type.
    classes
        What there is to serve.
    targets
        What it is held to.
    block_tokens, max_batched_tokens, max_sequences
        The engine: pool blocks, the longest chunk of a prompt, and the largest batch.
    """
    shape = (len(replicas), len(classes))
    rate, joules, batch = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    reasons: list[tuple[str, ...]] = []
    for a, replica in enumerate(replicas):
        row = []
        for j, each in enumerate(classes):
            chunk = replica.max_batched_tokens or max_batched_tokens
            found = _column(replica, each, targets, block_tokens, chunk, max_sequences)
            rate[a, j], batch[a, j], joules[a, j], why = found
            row.append(why)
        reasons.append(tuple(row))
    return Columns(tuple(replicas), rate, batch, joules, tuple(reasons))


def _column(
    replica: PlanReplica, each: LengthClass, targets: Targets, block_tokens: int, chunk: int, max_sequences: int
) -> tuple[float, int, float, str]:
    """Return rate, batch, joules, and why nothing is sustained."""
    law, pool = replica.coefficients, replica.kv_blocks * block_tokens
    prefill_s, prefill_j = _first_turn(replica, each, chunk)
    if each.peak_tokens > pool:
        return 0.0, 0, 0.0, f"its context of {each.peak_tokens:,.0f} tokens exceeds the pool of {pool:,}"
    if replica.role != "decode" and targets.first_token_s is not None and prefill_s > targets.first_token_s:
        return 0.0, 0, 0.0, f"its prompt alone takes {prefill_s:.3g} s, the first token is due in {targets.first_token_s:.3g} s"
    if replica.role == "prefill":
        return 1 / prefill_s, 0, prefill_j, ""
    appended_s, appended_j = _later_turns(replica, each)
    prompts_s = appended_s + (prefill_s if replica.role == "mixed" else 0.0)
    # A conversation between its turns keeps its cache: the pool holds the batch and those who pause.
    largest = int(min(max_sequences, pool // each.peak_tokens))
    batches = np.arange(1, largest + 1, dtype=float)
    step_s = law.step_s(batches, 0.0, batches * each.decode_context, batches)
    steps_s = each.output_tokens * step_s / batches
    token_s = step_s + prompts_s * batches / each.output_tokens
    rate = 1 / (prompts_s + steps_s)
    held = batches + rate * each.gap_s <= max(1.0, pool / each.peak_tokens)
    in_time = np.ones(len(batches), bool) if targets.token_s is None else token_s <= targets.token_s
    if not (held & in_time).any():
        return 0.0, 0, 0.0, f"a token takes {token_s[0]:.3g} s even alone, it is due in {targets.token_s or 0:.3g} s"
    best = int(np.flatnonzero(held & in_time)[-1])
    size = batches[best]
    step_j = float(law.energy_j(size, 0.0, size * each.decode_context, size))
    used_j = appended_j + each.output_tokens * step_j / size + (prefill_j if replica.role == "mixed" else 0.0)
    return float(rate[best]), int(size), used_j, ""


def _first_turn(replica: PlanReplica, each: LengthClass, chunk: int) -> tuple[float, float]:
    """Return time and energy of the first turn's prompt, computed alone."""
    law, tokens = replica.coefficients, each.first_turn_tokens
    starts = np.arange(0.0, tokens, chunk)
    sizes = np.minimum(float(chunk), tokens - starts)
    pairs = sizes * (starts + sizes / 2)
    used_s = law.step_s(sizes, pairs, prefill_context_tokens=starts)
    return float(used_s.sum()), float(law.energy_j(sizes, pairs, prefill_context_tokens=starts).sum())


def _later_turns(replica: PlanReplica, each: LengthClass) -> tuple[float, float]:
    """Return time and energy that the later turns' prompts add to steps that decode others."""
    law, turns = replica.coefficients, each.later_turns
    if turns == 0:
        return 0.0, 0.0
    new = each.appended_tokens / turns
    batch = 16.0  # they ride on steps with others; the slope of the matrix products between batch and batch + new tokens counts
    added_s = float(law.gemm(batch + new) - law.gemm(batch)) * turns
    added_j = float(law.gemm_energy(batch + new) - law.gemm_energy(batch)) * turns
    used_s = added_s + law.pair_s * each.pairs + law.prefill_context_s * each.appended_context
    used_j = added_j + law.pair_j * each.pairs + law.prefill_context_j * each.appended_context
    return used_s, used_j


def dominated(columns: Columns, cost: Float64[Array, " A"], uses: Float64[Array, "A K"]) -> list[int | None]:
    """Return per type another of the same role that is never worse: no dearer, no larger, and as fast on every class; or None."""
    rates, joules = columns.rate_per_s, columns.joules
    found: list[int | None] = [None] * len(columns.replicas)
    for a in range(len(found)):
        for b in range(len(found)):
            if a == b or found[b] is not None or columns.replicas[a].role != columns.replicas[b].role:
                continue
            if columns.replicas[a].llm != columns.replicas[b].llm:
                continue
            served = rates[a] > 0
            better = (
                cost[b] <= cost[a] and np.all(uses[b] <= uses[a]) and np.all(rates[b] >= rates[a])
                and np.all(joules[b][served] <= joules[a][served])
            )  # fmt: skip
            if better:
                found[a] = b
                break
    return found
