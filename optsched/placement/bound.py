"""Proven lower bounds on every objective under ``event-v1``, whatever the placement; roles as given.

Every figure rests on three facts of the evaluator: a step lasts at least as long as a step with only part of its content
(the step law grows with every argument), each prefill chunk has a step of its own, and reserved blocks never exceed the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from optsched.placement.alone import VARIANTS, Alone, alone, most_residents
from optsched.placement.gemm import Gemm
from optsched.placement.jobs import SLACK, least_finish_s, least_late
from optsched.placement.limits import target_limit
from optsched.placement.problem import PlacementProblem, percentile_95, percentile_rank
from optsched.placement.tables import tables_of

Array = np.ndarray
SHRINK = 1 - 1e-10
"""Bounds give way to the rounding of sums of many steps."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on the objective of every placement.

    Attributes
    ----------
    value
        The best of the components.
    which
        Name of the component that is best.
    components
        All of them, in the objective's unit.
    """

    value: float
    which: str
    components: dict[str, float]


@dataclass(frozen=True, slots=True)
class Load:
    """Work that conversations put on a group of replicas between a release and the time before they are due.

    Attributes
    ----------
    release_s
        Earliest start of the work.
    after_s
        Time that passes at least between the end of the work and the moment that a deadline is about.
    work, speed
        Least use of the resource, and how much of it there is per second.
    later, unfinished
        Use of the resource after that moment, and how many conversations at most are in the midst of it.
    """

    name: str
    release_s: Float64[Array, " C"]
    after_s: Float64[Array, " C"]
    work: Float64[Array, " C"]
    speed: float
    later: Float64[Array, " C"]
    unfinished: int = 0


def lower_bound(problem: PlacementProblem) -> Bound:
    """Return the best of the elementary bounds on the problem's objective.

    Parameters
    ----------
    problem
        With fixed roles; `PlacementProblem.with_free_roles` gives the bound for any choice of roles.
    """
    least = alone(problem)
    if problem.objective == "ttfet":
        return _best(_ttfet(problem, least))
    if problem.objective == "slo_misses":
        return _best(_misses(problem, least), whole=True)
    makespan = _makespan(problem, least)
    if problem.objective == "cost":
        return _best({name: value * problem.usd_per_hour / 3600 for name, value in makespan.items()})
    work_j = float(least.energy_j.min(axis=0).sum()) + lone_steps_j(problem)
    return _best({f"work and idle over {name}": work_j + problem.idle_w * value for name, value in makespan.items()})


def _best(components: dict[str, float], *, whole: bool = False) -> Bound:
    shrunk = {name: value if whole else value * SHRINK for name, value in components.items()}
    which = max(shrunk, key=lambda name: shrunk[name])
    return Bound(shrunk[which], which, shrunk)


def prefill_ends_s(problem: PlacementProblem, least: Alone) -> Float64[Array, " C"]:
    """Return the earliest end of each first prefill; exact where one replica does nothing but prefill all of them."""
    arrival = problem.workload.arrival_s
    sources = {p for p, _ in problem.pairs}
    ends = np.asarray(arrival + least.prefill_s.min(axis=0))
    if len(sources) == 1 and problem.replicas[next(iter(sources))].role == "prefill":
        free_s = 0.0
        for c, (ready_s, service_s) in enumerate(zip(arrival, least.prefill_s.min(axis=0), strict=True)):
            free_s = max(free_s, float(ready_s)) + float(service_s)
            ends[c] = free_s
    return ends


def _loads(problem: PlacementProblem, least: Alone, *, whole: bool) -> list[Load]:
    """List the loads up to the first token of the last turn, or up to the very end (`whole`)."""
    arrival = problem.workload.arrival_s
    goal_s = least.e2e_s if whole else least.ttfet_s
    with np.errstate(invalid="ignore"):  # infinite minus infinite where a pair cannot hold a conversation
        after_prefill = np.nan_to_num(goal_s - least.prefill_s, nan=np.inf).min(axis=0)
    ends, nothing = prefill_ends_s(problem, least), np.zeros(len(arrival))
    sources, targets = {p for p, _ in problem.pairs}, {d for _, d in problem.pairs}
    # once its last turn has a token, a conversation of several turns holds its blocks and decodes till its end
    stays = (np.diff(problem.workload.first_turn) > 1) & (not whole)
    unfinished = int(most_residents(problem)[sorted(targets)].sum())
    first_work, tails = least.prefill_work_s, least.tail_work_s if whole else least.early_work_s
    loads = [Load("prefill work", arrival, after_prefill, first_work[:, 0].min(axis=0), len(sources), nothing)]
    for variant in range(VARIANTS):
        both = (first_work[:, variant] + tails[:, variant]).min(axis=0)
        tail = tails[:, variant].min(axis=0)
        later = np.where(stays, least.last_work_s[:, variant].min(axis=0), 0.0)
        loads.append(Load(f"decoder work {variant}", ends, nothing, tail, len(targets), later, unfinished))
        loads.append(Load(f"all work {variant}", arrival, nothing, both, len(sources | targets), later, unfinished))
    pool = float(problem.kv_blocks[sorted(targets)].sum())
    later = np.where(stays, least.last_hold_s.min(axis=0), 0.0) * problem.blocks
    hold = (least.hold_s + least.last_hold_s if whole else least.hold_s).min(axis=0)
    loads.append(Load("KV area", arrival, nothing, hold * problem.blocks, pool, later, unfinished))
    return loads


def _ttfet(problem: PlacementProblem, least: Alone) -> dict[str, float]:
    arrival = problem.workload.arrival_s
    allowed = len(arrival) - percentile_rank(len(arrival))
    waits = prefill_ends_s(problem, least) - (arrival + least.prefill_s.min(axis=0))
    components = {"standalone latency": percentile_95(least.ttfet_s.min(axis=0))}
    components["first come, first served prefill"] = percentile_95(least.ttfet_s.min(axis=0) + waits)
    for load in _loads(problem, least, whole=False):
        components[load.name] = _least_limit_s(load, arrival, allowed, max(components.values()))
    return components


def _least_limit_s(load: Load, arrival: Float64[Array, " C"], allowed: int, low_s: float) -> float:
    """Return a limit on the latency that more conversations must miss than are allowed to, as large as bisection finds one."""
    starts = 64 if len(arrival) <= 1000 else 8

    def impossible(limit_s: float) -> bool:
        due = arrival + limit_s - load.after_s
        late = least_late(load.release_s, due, load.work, load.speed, later=load.later, unfinished=load.unfinished, starts=starts)
        return late > allowed

    if not impossible(low_s):
        return 0.0
    high_s = 2 * low_s + 1e-9
    while impossible(high_s):
        low_s, high_s = high_s, 2 * high_s
    while high_s - low_s > 1e-5 * high_s:
        middle = (low_s + high_s) / 2
        low_s, high_s = (middle, high_s) if impossible(middle) else (low_s, middle)
    return low_s


def _makespan(problem: PlacementProblem, least: Alone) -> dict[str, float]:
    arrival = problem.workload.arrival_s
    waits = prefill_ends_s(problem, least) - (arrival + least.prefill_s.min(axis=0))
    components = {"standalone latency": float((arrival + waits + least.e2e_s.min(axis=0)).max())}
    for load in _loads(problem, least, whole=True):
        components[load.name] = least_finish_s(load.release_s, load.work, load.speed) + float(load.after_s.min())
    return components


def lone_steps_j(problem: PlacementProblem) -> float:
    """Return the least fixed energy of steps without a prefill chunk: decodes need more steps than there are chunks."""
    laws, turns, pools = tables_of(problem)
    steps = turns.outputs - 1
    chunks = int((-(-turns.tokens // int(pools.chunk.min()))).sum())
    longest = int(np.add.reduceat(steps, turns.first_turn[:-1]).max())
    crowd = max(1, int(most_residents(problem).max()))
    gemms = [Gemm.of(laws, replica, laws.gemm_j) for replica in range(len(pools.chunk))]
    # of a step's energy, what its decodes have not been charged with one by one (`Alone.energy_j`)
    fixed = min(float(laws.step_j[replica]) + gemm.at(1.0) - gemm.per_decode for replica, gemm in enumerate(gemms))
    return fixed * max(0, max(longest, -(-int(steps.sum()) // crowd)) - chunks)


def _misses(problem: PlacementProblem, least: Alone) -> dict[str, float]:
    certain = certain_misses(problem, least)
    components = {"certain": float(certain.sum())}
    slo, standalone = problem.slo, problem.standalone
    if slo is None or standalone is None:
        return components
    arrival, rest = problem.workload.arrival_s, ~certain
    first = problem.workload.first_turn[:-1]
    cases = [("TTFET", slo.ttfet, standalone.ttfet_s, False), ("E2E", slo.e2e, standalone.e2e_s, True)]
    for name, target, reference, whole in cases:
        if target is not None:
            due = arrival + target_limit(target, reference)
            for load in _loads(problem, least, whole=whole):
                components[f"{name}: {load.name}"] = _late(load, due - load.after_s, rest, certain)
    if slo.ttft is not None:
        load = _loads(problem, least, whole=False)[0]
        components["TTFT: prefill work"] = _late(load, arrival + target_limit(slo.ttft, standalone.ttft_s)[first], rest, certain)
    return components


def _late(load: Load, due: Float64[Array, " C"], rest: Bool[Array, " C"], certain: Bool[Array, " C"]) -> float:
    late = least_late(
        load.release_s[rest], due[rest], load.work[rest], load.speed, later=load.later[rest], unfinished=load.unfinished
    )
    return float(certain.sum() + late)


def certain_misses(problem: PlacementProblem, least: Alone) -> Bool[Array, " C"]:
    """Tell which conversations miss a target even with nothing else running."""
    slo, standalone, workload = problem.slo, problem.standalone, problem.workload
    found = np.zeros(workload.num_conversations, bool)
    if slo is None or standalone is None:
        return found
    waits = prefill_ends_s(problem, least) - (workload.arrival_s + least.prefill_s.min(axis=0))
    first, last = workload.first_turn[:-1], workload.first_turn[1:] - 1
    steps = np.where(workload.output_tokens > 1, workload.output_tokens - 1, np.inf)
    ttft = least.turn_prefill_s.copy()
    ttft[first] = waits + least.prefill_s.min(axis=0)
    tpot = least.turn_decode_s / steps
    cases = [
        (slo.ttft, standalone.ttft_s, ttft),
        (slo.tpot, standalone.tpot_s, tpot),
        (slo.tbt, standalone.last_turn_tbt_s, tpot[last]),
        (slo.ttfet, standalone.ttfet_s, waits + least.ttfet_s.min(axis=0)),
        (slo.e2e, standalone.e2e_s, waits + least.e2e_s.min(axis=0)),
    ]
    for target, reference, latency in cases:
        if target is not None:
            late = latency > target_limit(target, reference) * (1 + SLACK)
            found |= np.maximum.reduceat(late, first) if latency is ttft or latency is tpot else late
    return found
