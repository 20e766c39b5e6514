"""Lower bounds by linear programs for fleets of several kinds: who goes to which, and what each can do in a stretch of time.

The elementary bounds give every conversation its best replica. Here it is divided between kinds of pairs, and each kind of
replica has its own time. A bound is not what the solver says but what its prices prove by weak duality, in plain arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import sparse
from scipy.optimize import linprog

from optsched.placement.alone import VARIANTS, Alone, alone
from optsched.placement.bound import SHRINK, Bound, certain_misses, lone_steps_j, lower_bound
from optsched.placement.kinds import Kinds, kinds_of
from optsched.placement.limits import limits_of
from optsched.placement.problem import PlacementProblem, percentile_rank

Array = np.ndarray
ENTRIES = 600_000
"""Matrix entries at most, about; where there would be more, fewer stretches of time are looked at."""
CLOSE = 1e-3
"""Where bisection for the least percentile stops, relatively."""


@dataclass(frozen=True, slots=True)
class _Shares:
    """The columns of a program: conversation and kind of pair; and the time that each takes of each kind of replica.

    Attributes
    ----------
    conversation, pair
        Of each column; impossible ones are left out.
    work
        Per way of sharing out a step's time and kind of replica, in seconds.
    """

    conversation: Int64[Array, " N"]
    pair: Int64[Array, " N"]
    work: Float64[Array, "V G N"]


def _shares(least: Alone, kinds: Kinds, possible: Bool[Array, "Q C"], tail: Float64[Array, "K V C"]) -> _Shares:
    pair, conversation = np.nonzero(possible)
    row = kinds.row[pair]
    work = np.zeros((VARIANTS, len(kinds.count), len(pair)))
    everyone = np.arange(len(pair))
    for v in range(VARIANTS):
        np.add.at(work[v], (kinds.source[pair], everyone), least.prefill_work_s[row, v, conversation])
        np.add.at(work[v], (kinds.target[pair], everyone), tail[row, v, conversation])
    return _Shares(conversation, pair, work)


def least_late_share(
    release_s: Float64[Array, " C"], due_s: Float64[Array, " C"], after_s: Float64[Array, "G C"], shares: _Shares, kinds: Kinds
) -> float:
    """Return a number of conversations, maybe a fraction, that must be late at least, whoever goes where.

    Parameters
    ----------
    release_s, due_s
        When the work on each may begin, and when it must be done.
    after_s
        Per kind of replica, what passes at least between the last work there and the moment that is due.
    shares, kinds
        The possibilities to be on time.
    """
    rows, room = _stretches(release_s, due_s, after_s, shares, kinds)
    count = len(release_s)
    if not len(room):
        return float(count - len(np.unique(shares.conversation)))
    cover = sparse.csr_matrix(
        (np.ones(len(shares.conversation)), (shares.conversation, np.arange(len(shares.conversation)))),
        (count, len(shares.conversation)),
    )
    answer = linprog(
        np.concatenate([np.zeros(len(shares.conversation)), np.ones(count)]),
        A_ub=sparse.vstack([
            sparse.hstack([rows, sparse.csr_matrix((len(room), count))]), sparse.hstack([-cover, -sparse.eye(count)]),
        ]).tocsr(),
        b_ub=np.concatenate([room, -np.ones(count)]), method="highs",
    )  # fmt: skip
    if answer.status != 0:
        return 0.0
    price = np.maximum(0.0, -answer.ineqlin.marginals[: len(room)])
    each = np.ones(count)
    np.minimum.at(each, shares.conversation, np.asarray(rows.T @ price))
    return float(each.sum() - price @ room) - 1e-9 * count


def _stretches(
    release_s: Float64[Array, " C"], due_s: Float64[Array, " C"], after_s: Float64[Array, "G C"], shares: _Shares, kinds: Kinds
) -> tuple[sparse.csr_matrix, Float64[Array, " M"]]:
    """Return rows: what the conversations released from a on and due by b take of a kind is at most its time from a to b."""
    groups, columns = len(kinds.count), len(shares.conversation)
    most = max(4, int(np.sqrt(2 * ENTRIES / max(1, columns * VARIANTS * groups))))
    starts, ends = _some(release_s, most), _some(due_s, most)
    rows, room = [], []
    for a in starts:
        for b in ends:
            inside = (release_s >= a) & (due_s <= b)
            if not inside.any():
                continue
            chosen = inside[shares.conversation]
            for g in range(groups):
                end_s = float((due_s - after_s[g])[inside].max())
                for v in range(VARIANTS):
                    need = np.where(chosen, shares.work[v, g], 0.0)
                    if need.any():
                        rows.append(sparse.csr_matrix(need))
                        room.append(float(kinds.count[g]) * max(0.0, end_s - a))
    return (sparse.vstack(rows).tocsr() if rows else sparse.csr_matrix((0, columns))), np.array(room)


def _some(moments_s: Float64[Array, " C"], most: int) -> Float64[Array, " m"]:
    moments = np.unique(moments_s)
    return moments if len(moments) <= most else moments[np.linspace(0, len(moments) - 1, most).astype(int)]


def _on_time(problem: PlacementProblem, least: Alone, kinds: Kinds, limit_s: Float64[Array, " C"], *, whole: bool) -> float:
    """Return how many conversations exceed a limit on TTFET (or, `whole`, on E2E) at least."""
    goal_s = (least.e2e_s if whole else least.ttfet_s)[kinds.row]
    possible = np.isfinite(goal_s) & (goal_s <= limit_s * (1 + 1e-9))
    shares = _shares(least, kinds, possible, least.tail_work_s if whole else least.early_work_s)
    release_s = problem.workload.arrival_s
    after_s = np.zeros((len(kinds.count), len(release_s)))
    with np.errstate(invalid="ignore"):  # infinite minus infinite where a pair cannot hold a conversation
        rest_s = np.nan_to_num(goal_s - least.prefill_s[kinds.row], nan=np.inf)
    for g in np.flatnonzero(kinds.only_prefill):
        after_s[g] = rest_s[kinds.source == g].min(axis=0, initial=np.inf)
    due_s = np.where(np.isfinite(limit_s), release_s + limit_s, release_s.max() + 1e9)
    return least_late_share(release_s, due_s, np.where(np.isfinite(after_s), after_s, 0.0), shares, kinds)


def proven_bound(problem: PlacementProblem, value: float | None = None) -> float:
    """Return the elementary bound, and where several kinds of replicas may do the same work that of `windows_bound`."""
    kinds = kinds_of(problem, alone(problem))
    if len(set(kinds.source.tolist())) == 1 and len(set(kinds.target.tolist())) == 1:
        return lower_bound(problem).value
    return windows_bound(problem, value).value


def windows_bound(problem: PlacementProblem, value: float | None = None) -> Bound:
    """Return the best of the elementary bounds and of the linear programs.

    Parameters
    ----------
    problem
        What to bound.
    value
        Of a placement that is known: no larger bound is looked for.
    """
    bound = lower_bound(problem)
    least = alone(problem)
    kinds = kinds_of(problem, least)
    if problem.objective in ("energy", "cost"):
        found = _energy_or_cost(problem, least, kinds)
    elif problem.objective == "ttfet":
        found = _percentile(problem, least, kinds, bound.value, np.inf if value is None else value)
    else:
        limits = limits_of(problem)
        certain = float(certain_misses(problem, least).sum())
        late = [
            _on_time(problem, least, kinds, limits.ttfet_s, whole=False),
            _on_time(problem, least, kinds, limits.e2e_s, whole=True),
        ]
        found = max(certain, *(float(np.ceil(number - 1e-6)) for number in late))
    components = {**bound.components, "kinds and stretches": found}
    which = max(components, key=lambda name: components[name])
    return Bound(components[which], which, components)


def _percentile(problem: PlacementProblem, least: Alone, kinds: Kinds, low_s: float, high_s: float) -> float:
    allowed = problem.workload.num_conversations - percentile_rank(problem.workload.num_conversations)

    def impossible(limit_s: float) -> bool:
        return _on_time(problem, least, kinds, np.full(problem.workload.num_conversations, limit_s), whole=False) > allowed + 1e-6

    if low_s <= 0 or not impossible(low_s):
        return 0.0
    if not np.isfinite(high_s):
        high_s = 2 * low_s
        while impossible(high_s):
            low_s, high_s = high_s, 2 * high_s
    while high_s - low_s > CLOSE * high_s:
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (middle_s, high_s) if impossible(middle_s) else (low_s, middle_s)
    return low_s * SHRINK


def _energy_or_cost(problem: PlacementProblem, least: Alone, kinds: Kinds) -> float:
    """Return the least of dynamic energy (none for cost) plus what a second costs times the makespan."""
    arrival_s, count = problem.workload.arrival_s, problem.workload.num_conversations
    shares = _shares(least, kinds, np.isfinite(least.e2e_s[kinds.row]), least.tail_work_s)
    energy = problem.objective == "energy"
    per_s = problem.idle_w if energy else problem.usd_per_hour / 3600
    row = kinds.row[shares.pair]
    joules = least.energy_j[row, shares.conversation] if energy else np.zeros(len(row))
    columns, groups = len(row), len(kinds.count)
    rows, since, width = [], [], []
    for a in _some(arrival_s, max(4, ENTRIES // (columns * VARIANTS * groups))):
        for g in range(groups):
            for v in range(VARIANTS):
                rows.append(sparse.csr_matrix(np.where(arrival_s[shares.conversation] >= a, shares.work[v, g], 0.0)))
                since.append(float(kinds.count[g]) * float(a))
                width.append(float(kinds.count[g]))
    end_s = arrival_s[shares.conversation] + least.e2e_s[row, shares.conversation]
    ends = sparse.csr_matrix((end_s, (shares.conversation, np.arange(columns))), (count, columns))
    work = sparse.vstack([*rows, ends]).tocsr()
    since_s, wide = np.concatenate([since, np.zeros(count)]), np.concatenate([width, np.ones(count)])
    least_s = _least_makespan_s(problem)
    cover = sparse.csr_matrix((np.ones(columns), (shares.conversation, np.arange(columns))), (count, columns))
    answer = linprog(
        np.concatenate([joules, [per_s]]), A_ub=sparse.hstack([work, -sparse.csr_matrix(wide[:, None])]).tocsr(), b_ub=-since_s,
        A_eq=sparse.hstack([cover, sparse.csr_matrix((count, 1))]).tocsr(), b_eq=np.ones(count),
        bounds=[*[(0, None)] * columns, (least_s, None)], method="highs",
    )  # fmt: skip
    if answer.status != 0:
        return 0.0
    price = np.maximum(0.0, -answer.ineqlin.marginals)
    price *= min(1.0, per_s / max(float(price @ wide), 1e-300))  # no second may pay more than it costs
    each = np.full(count, np.inf)
    np.minimum.at(each, shares.conversation, joules + np.asarray(work.T @ price))
    proven = float(each.sum() + price @ since_s) + least_s * max(0.0, per_s - float(price @ wide))
    return (proven + (lone_steps_j(problem) if energy else 0.0)) * SHRINK


def _least_makespan_s(problem: PlacementProblem) -> float:
    usd = lower_bound(problem.with_objective("cost")).value
    return usd * 3600 / problem.usd_per_hour if problem.usd_per_hour > 0 else 0.0
