"""Every set of conversations on every kind of replica, timed by the evaluator: the columns of the partition program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.compiled import lean
from optsched.placement.clockwork import Clockwork, clockwork
from optsched.placement.neighbourhood import case_of, empty_reach, empty_timed
from optsched.placement.problem import PlacementProblem
from optsched.placement.queues import NOBODY
from optsched.placement.retime import Case, Reach, Timed, assign, retime

Array = np.ndarray
MOST_CONVERSATIONS = 14
"""Conversations whose sets are all timed: 16,383 per kind of replica."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What each set of conversations (a bit mask, from 1) leads to on one kind of replica.

    Attributes
    ----------
    replicas
        The replicas of this kind.
    prefill
        The replica that prefills for them: the only one of role prefill, or `NOBODY` where they do it themselves.
    fits
        Whether the pool holds each conversation of the set.
    ttfet_s
        Of each conversation in the set; 0 for the others.
    end_s, dynamic_j, missed
        Last token, energy above idle with that of the transfers, and conversations that miss a target.
    """

    replicas: tuple[int, ...]
    prefill: int
    fits: Bool[Array, " S"]
    ttfet_s: Float64[Array, "S C"]
    end_s: Float64[Array, " S"]
    dynamic_j: Float64[Array, " S"]
    missed: Int64[Array, " S"]


@dataclass(frozen=True, slots=True)
class ColumnTable:
    """The columns of all kinds, and what is the same in every placement.

    Attributes
    ----------
    columns
        One entry per kind of replica.
    fixed_j
        Energy above idle of the replica that only prefills.
    """

    columns: tuple[Columns, ...]
    fixed_j: float


def independent(problem: PlacementProblem) -> bool:
    """Tell whether what one decoder does cannot depend on what goes to another.

    So it is where everyone stays (no link between mixed replicas), and where one replica of role prefill prefills for all:
    its queue is the same in every placement.
    """
    if all(p == d for p, d in problem.pairs):
        return True
    return len({p for p, _ in problem.pairs}) == 1 and all(p != d for p, d in problem.pairs)


@lean
def _time_sets(
    case: Case, works: Clockwork, timed: Timed, reach: Reach, prefill: int, replica: int, possible: Bool[Array, " C"],
    fits: Bool[Array, " S"], ttfet_s: Float64[Array, "S C"], end_s: Float64[Array, " S"], dynamic_j: Float64[Array, " S"],
    missed: Int64[Array, " S"],
) -> None:  # fmt: skip
    count = len(possible)
    for mask in range(1, len(fits)):
        fits[mask] = True
        for c in range(count):
            if mask >> c & 1 and not possible[c]:
                fits[mask] = False
        if not fits[mask]:
            continue
        for c in range(count):
            inside = mask >> c & 1
            timed.prefill[c] = (replica if prefill == NOBODY else prefill) if inside else NOBODY
            timed.decode[c] = replica if inside else NOBODY
        reach.touched[replica] = True
        retime(case, works, timed, reach)
        dynamic_j[mask] = timed.schedule.dynamic_j[replica]
        for c in range(count):
            if mask >> c & 1:
                ttfet_s[mask, c] = timed.ttfet_s[c]
                end_s[mask] = max(end_s[mask], timed.end_s[c])
                dynamic_j[mask] += timed.moved_j[c]
                missed[mask] += timed.missed[c]


def column_table(problem: PlacementProblem) -> ColumnTable:
    """Time every set of conversations on every kind of replica of an `independent` problem.

    Notes
    -----
    A conversation that ends with its first token is never decoded; its times come from the prefill and are part of any set.
    """
    case, count = case_of(problem), problem.workload.num_conversations
    replicas = len(problem.replicas)
    works, timed = clockwork(case.turns, case.pools, count, replicas), empty_timed(problem, case)
    reach = empty_reach(count, replicas)
    prefill, fixed_j = NOBODY, 0.0
    if problem.pairs[0][0] != problem.pairs[0][1]:
        prefill = problem.pairs[0][0]
        for c in range(count):
            assign(timed, reach, c, *problem.options(c)[0])
        retime(case, works, timed, reach)
        fixed_j = float(timed.schedule.dynamic_j[prefill])
    columns = []
    for group in _kinds(problem, prefill):
        size = 1 << count
        found = (
            np.zeros(size, bool), np.zeros((size, count)), np.zeros(size), np.zeros(size), np.zeros(size, np.int64),
        )  # fmt: skip
        source = group[0] if prefill == NOBODY else prefill
        _time_sets(case, works, timed, reach, prefill, group[0], problem.fits(source, group[0]), *found)
        columns.append(Columns(tuple(group), prefill, *found))
    return ColumnTable(tuple(columns), fixed_j)


def _kinds(problem: PlacementProblem, prefill: int) -> list[list[int]]:
    """Group the replicas that decode by all that a set's times depend on."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for d in sorted({d for _, d in problem.pairs}):
        replica, link = problem.replicas[d], problem.link_of.get((prefill, d))
        joined = None if link is None else (link.latency_s, link.bytes_per_s, link.joules_per_byte)
        groups.setdefault((replica.coefficients, problem.chunks[d], replica.kv_blocks, joined), []).append(d)
    return list(groups.values())
