"""A placement problem as plain arrays, the form that compiled code reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.placement.problem import PlacementProblem

Array = np.ndarray


class Laws(NamedTuple):
    """Step laws of R replicas; the fields are those of `StepLaw`, one row each.

    Attributes
    ----------
    knots
        Number of knots of each row of `gemm_tokens` and `gemm_s`; columns beyond it are unused.
    chunk
        Tokens of a prefill chunk.
    """

    overhead_s: Float64[Array, " R"]
    floor_s: Float64[Array, " R"]
    pair_s: Float64[Array, " R"]
    kv_s: Float64[Array, " R"]
    sequence_s: Float64[Array, " R"]
    gemm_tokens: Float64[Array, "R K"]
    gemm_s: Float64[Array, "R K"]
    knots: Int64[Array, " R"]
    step_j: Float64[Array, " R"]
    token_j: Float64[Array, " R"]
    pair_j: Float64[Array, " R"]
    kv_j: Float64[Array, " R"]
    chunk: Int64[Array, " R"]


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
    """KV blocks: what each conversation reserves, what each replica has; and the transfer times of first turns.

    Attributes
    ----------
    latency_s, s_per_token
        Transfer time between two replicas: latency and time per first-turn token; NaN where no link joins them.
    """

    need: Int64[Array, " C"]
    have: Int64[Array, " R"]
    latency_s: Float64[Array, "R R"]
    s_per_token: Float64[Array, "R R"]


class Tables(NamedTuple):
    """All that the evaluator and the bounds read."""

    laws: Laws
    turns: Turns
    pools: Pools


def laws_of(problem: PlacementProblem) -> Laws:
    """Tabulate the replicas' step laws."""
    laws = [replica.coefficients for replica in problem.replicas]
    width = max(len(law.gemm_tokens) for law in laws)

    def column(name: str) -> Float64[Array, " R"]:
        return np.array([getattr(law, name) for law in laws], dtype=np.float64)

    def padded(name: str) -> Float64[Array, "R K"]:
        rows = [getattr(law, name) for law in laws]
        return np.array([row + (row[-1],) * (width - len(row)) for row in rows], dtype=np.float64)

    return Laws(
        column("overhead_s"), column("floor_s"), column("pair_s"), column("kv_s"), column("sequence_s"),
        padded("gemm_tokens"), padded("gemm_s"), np.array([len(law.gemm_tokens) for law in laws], dtype=np.int64),
        column("step_j"), column("token_j"), column("pair_j"), column("kv_j"), np.array(problem.chunks, dtype=np.int64),
    )  # fmt: skip


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
    """Tabulate pools and links."""
    count = len(problem.replicas)
    latency, per_token = np.full((count, count), np.nan), np.full((count, count), np.nan)
    for ends, link in problem.link_of.items():
        latency[ends] = link.latency_s
        per_token[ends] = problem.kv_bytes_per_token / link.bytes_per_s
    return Pools(problem.blocks.astype(np.int64), problem.kv_blocks, latency, per_token)


def tables_of(problem: PlacementProblem) -> Tables:
    """Return the problem's arrays, computed once per problem."""
    known: Tables | None = problem.__dict__.get("_tables")
    if known is None:
        known = Tables(laws_of(problem), turns_of(problem), pools_of(problem))
        problem.__dict__["_tables"] = known
    return known
