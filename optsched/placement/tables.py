"""A placement problem as plain arrays, the form that compiled code reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.placement.problem import PlacementProblem
from optsched.placement.step_time import Laws, pack

Array = np.ndarray


class Turns(NamedTuple):
    """The workload's turns.

    Attributes
    ----------
    first_turn, arrival_s
        As in `Workload`.
    tokens, cached
        Tokens that the turn's prefill computes (after the first turn one more than it appends: the previous turn's last
        output token is not cached yet), and tokens cached before.
    outputs, gap_s
        As in `Workload`.
    """

    first_turn: Int64[Array, " C+1"]
    arrival_s: Float64[Array, " C"]
    tokens: Int64[Array, " T"]
    cached: Int64[Array, " T"]
    outputs: Int64[Array, " T"]
    gap_s: Float64[Array, " T"]


class Pools(NamedTuple):
    """KV blocks: what each conversation reserves, what each replica has; its chunks; and the transfer times of first turns.

    Attributes
    ----------
    chunk
        Most tokens of a prefill chunk on each replica.
    latency_s, s_per_token
        Transfer time between two replicas: latency and time per first-turn token; NaN where no link joins them.
    """

    need: Int64[Array, " C"]
    have: Int64[Array, " R"]
    chunk: Int64[Array, " R"]
    latency_s: Float64[Array, "R R"]
    s_per_token: Float64[Array, "R R"]


class Tables(NamedTuple):
    """All that the evaluator and the bounds read."""

    laws: Laws
    turns: Turns
    pools: Pools


def turns_of(problem: PlacementProblem) -> Turns:
    """Tabulate the workload's turns."""
    workload = problem.workload
    carried = (workload.turn_in_conversation > 0).astype(np.int64)
    return Turns(
        workload.first_turn.astype(np.int64), workload.arrival_s.astype(np.float64),
        (workload.new_tokens + carried).astype(np.int64), (workload.context_before - carried).astype(np.int64),
        workload.output_tokens.astype(np.int64), workload.gap_s.astype(np.float64),
    )  # fmt: skip


def pools_of(problem: PlacementProblem) -> Pools:
    """Tabulate pools, chunks and links."""
    count = len(problem.replicas)
    latency, per_token = np.full((count, count), np.nan), np.full((count, count), np.nan)
    for ends, link in problem.link_of.items():
        latency[ends] = link.latency_s
        per_token[ends] = problem.kv_bytes_per_token / link.bytes_per_s
    chunk = np.array(problem.chunks, dtype=np.int64)
    return Pools(problem.blocks.astype(np.int64), problem.kv_blocks, chunk, latency, per_token)


def tables_of(problem: PlacementProblem) -> Tables:
    """Return the problem's arrays, computed once per problem."""
    known: Tables | None = problem.__dict__.get("_tables")
    if known is None:
        laws = pack([replica.coefficients for replica in problem.replicas])
        known = Tables(laws, turns_of(problem), pools_of(problem))
        problem.__dict__["_tables"] = known
    return known
