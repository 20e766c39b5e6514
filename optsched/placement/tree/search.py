"""Prove the best placement of few conversations by trying every one that a bound does not rule out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from optsched.placement.alone import VARIANTS, alone
from optsched.placement.clockwork import clockwork
from optsched.placement.neighbourhood import case_of, empty_reach, empty_timed
from optsched.placement.problem import PlacementPlan, PlacementProblem, percentile_rank
from optsched.placement.queues import NOBODY
from optsched.placement.score import CODES, Aim
from optsched.placement.symmetry import interchangeable
from optsched.placement.tree.walk import Ground, Options, Path, Tools, walk

Array = np.ndarray
SLICE = 300_000
"""Turns that are timed between two looks at the clock: less than a second."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Which replicas may be used together, and what those that are used take per second.

    Attributes
    ----------
    kind, supply
        Of each replica its kind, and how many replicas of each kind may be used.
    rate, base
        What a replica takes once it is used, and what is taken anyway: W where energy is minimised, USD/s where price is.
    groups
        Replicas that are alike, in the order in which they are used.
    """

    kind: Int64[Array, " R"]
    supply: Int64[Array, " K"]
    rate: Float64[Array, " R"]
    base: float
    groups: tuple[tuple[int, ...], ...]


def upkeep_of(problem: PlacementProblem) -> Upkeep:
    """Return the upkeep of a fixed fleet: all of it is on, whatever is used."""
    count = len(problem.replicas)
    base = problem.idle_w if problem.objective == "energy" else problem.usd_per_hour / 3600
    groups = tuple(tuple(group) for group in interchangeable(problem))
    return Upkeep(np.zeros(count, np.int64), np.array([count]), np.zeros(count), base, groups)


@dataclass(frozen=True, slots=True)
class Walked:
    """What the walk found.

    Attributes
    ----------
    plan, value
        The best placement that is better than what was known, or None with the value that was known.
    finished
        Whether nothing is left that could be better.
    """

    plan: PlacementPlan | None
    value: float
    finished: bool


def walk_all(problem: PlacementProblem, value: float, *, until_s: float, upkeep: Upkeep | None = None) -> Walked:
    """Look through all placements for one that is better than a value.

    Parameters
    ----------
    problem
        What to place; a dozen conversations at most, fewer where there are many pairs.
    value
        Of the best placement known; infinite if there is none.
    until_s
        When to stop, on the clock of `time.perf_counter`.
    upkeep
        Which replicas may be used together, and what they take; None: a fixed fleet.
    """
    upkeep = upkeep_of(problem) if upkeep is None else upkeep
    case, count, replicas = case_of(problem), problem.workload.num_conversations, len(problem.replicas)
    options = _options(problem)
    nowhere = np.full(count, NOBODY)
    aim = Aim(CODES[problem.objective], 0.0, 0.0, 0.0, nowhere, nowhere)
    ground, path = _ground(problem, options, upkeep), _path(options, upkeep, replicas, value)
    works, reach = clockwork(case.turns, case.pools, count, replicas), empty_reach(count, replicas)
    tools = Tools(works, empty_timed(problem, case), reach, np.zeros(count))
    while path.at[0] >= 0 and time.perf_counter() < until_s:
        walk(case, aim, options, ground, path, tools, SLICE)
    found = path.best_prefill[0] != NOBODY
    plan = PlacementPlan.of(path.best_prefill, path.best_decode) if found else None
    return Walked(plan, float(path.best[0]), bool(path.at[0] < 0))


def _options(problem: PlacementProblem) -> Options:
    least, count = alone(problem), problem.workload.num_conversations
    pairs = [problem.options(c) for c in range(count)]
    start = np.concatenate([[0], np.cumsum([len(own) for own in pairs])]).astype(np.int64)
    ends = np.array([pair for own in pairs for pair in own], dtype=np.int64).reshape(-1, 2)
    row = np.array([least.kind_of_pair[pair] for own in pairs for pair in own], dtype=np.int64)
    c = np.repeat(np.arange(count), np.diff(start))
    latency = problem.objective in ("ttfet", "slo_misses")
    tail = (least.early_work_s if latency else least.tail_work_s)[row, :, c].T
    prefill_s = least.prefill_s[row, c]
    return Options(
        start, ends[:, 0].copy(), ends[:, 1].copy(), prefill_s, np.maximum(0.0, least.ttfet_s[row, c] - prefill_s),
        np.maximum(0.0, least.e2e_s[row, c] - prefill_s), least.energy_j[row, c],
        np.ascontiguousarray(least.prefill_work_s[row, :, c].T), np.ascontiguousarray(tail),
    )  # fmt: skip


def _ground(problem: PlacementProblem, options: Options, upkeep: Upkeep) -> Ground:
    count = problem.workload.num_conversations
    ends = options.prefill_s + options.end_s + np.repeat(problem.workload.arrival_s, np.diff(options.start))
    least_j, least_end_s = (np.minimum.reduceat(values, options.start[:-1]) for values in (options.joules, ends))
    later_end_s = np.append(np.maximum.accumulate(least_end_s[::-1])[::-1], 0.0)
    twin = np.full(len(problem.replicas), NOBODY)
    for group in upkeep.groups:
        twin[list(group[1:])] = group[:-1]
    return Ground(
        np.array([count - percentile_rank(count)]), np.append(np.cumsum(least_j[::-1])[::-1], 0.0), later_end_s,
        np.array([replica.role == "prefill" for replica in problem.replicas]), twin, upkeep.kind, upkeep.supply, upkeep.rate,
        np.array([upkeep.base]),
    )  # fmt: skip


def _path(options: Options, upkeep: Upkeep, replicas: int, value: float) -> Path:
    count, kinds = len(options.start) - 1, len(upkeep.supply)
    none, nobody = np.zeros(count + 1), np.full(count, NOBODY)
    return Path(
        at=np.zeros(1, np.int64), option=options.start[:-1].copy(), used=np.zeros(replicas, np.int64),
        on=np.zeros(kinds, np.int64), stay_s=np.zeros(replicas), move_s=np.zeros(replicas), old_stay_s=np.zeros(count),
        old_move_s=np.zeros(count), size=np.zeros(replicas, np.int64), release_s=np.zeros((replicas, count)),
        work_s=np.zeros((replicas, VARIANTS, count)), dynamic_j=none.copy(), answer_s=none.copy(), end_s=none.copy(),
        missed=np.zeros(count + 1, np.int64), best=np.array([value]), best_prefill=nobody.copy(), best_decode=nobody.copy(),
    )  # fmt: skip
