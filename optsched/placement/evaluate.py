"""The evaluator ``event-v1``: what a placement is worth; the referee, heuristics and optimum all use this one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from optsched.domain.results import Latencies
from optsched.errors import PlanError
from optsched.placement.clockwork import Schedule
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem, percentile_95
from optsched.placement.schedule import place
from optsched.placement.tables import tables_of

Array = np.ndarray
EVALUATOR = "event-v1"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a placement leads to under the evaluator's time model (`optsched.placement.schedule`).

    Attributes
    ----------
    schedule
        Times of everything.
    ttfet_s
        Per conversation: arrival to the first token of its last turn.
    makespan_s
        Time 0 to the last token.
    dynamic_j
        Energy above idle per replica.
    transfer_j
        Energy of the transfers.
    energy_j
        All energy, the idle power of every replica over the makespan included.
    kv_block_s
        Per replica: reserved KV blocks, integrated over time.
    usd
        Price of all replicas over the makespan.
    missed
        Conversations that miss a latency target; None without targets.
    """

    schedule: Schedule
    ttfet_s: Float64[Array, " C"]
    makespan_s: float
    dynamic_j: Float64[Array, " R"]
    transfer_j: float
    energy_j: float
    kv_block_s: Float64[Array, " R"]
    usd: float
    missed: Bool[Array, " C"] | None

    def value(self, objective: Goal) -> float:
        """Return the value of an objective.

        Raises
        ------
        PlanError
            If misses are asked for and the problem has no latency targets.
        """
        if objective == "ttfet":
            return percentile_95(self.ttfet_s)
        if objective == "energy":
            return self.energy_j
        if objective == "cost":
            return self.usd
        if self.missed is None:
            raise PlanError(["slo_misses needs latency targets; give the problem an slo"])
        return float(self.missed.sum())


def evaluate(problem: PlacementProblem, plan: PlacementPlan, *, count: int | None = None) -> Evaluation:
    """Evaluate a placement.

    Parameters
    ----------
    problem, plan
        What to place, and where.
    count
        Only the first so many conversations; None: all. Their targets' misses are then not counted.

    Raises
    ------
    PlanError
        If the placement breaks a rule that needs no schedule: lengths, indices, roles, links, or a pool too small.
    """
    broken = static_violations(problem, plan)
    if broken:
        raise PlanError(broken, "placement")
    return _evaluate(problem, plan, count)


def objective_of(problem: PlacementProblem, plan: PlacementPlan) -> float:
    """Return the value of the problem's objective for a placement that is known to break no rule."""
    return _evaluate(problem, plan, None).value(problem.objective)


def rank(problem: PlacementProblem, plan: PlacementPlan, count: int | None = None) -> tuple[float, float]:
    """Return what to compare placements by: the objective, then the mean TTFET; known to break no rule.

    Of the first `count` conversations alone, where it is given; missed targets are then not counted.
    """
    found = _evaluate(problem, plan, count)
    mean_s = float(found.ttfet_s.mean())
    if problem.objective == "slo_misses" and count is not None:
        return mean_s, mean_s
    return found.value(problem.objective), mean_s


def static_violations(problem: PlacementProblem, plan: PlacementPlan) -> list[str]:
    """List the broken rules that need no schedule, by arrays; the referee says more."""
    count, replicas = problem.workload.num_conversations, len(problem.replicas)
    if len(plan.prefill) != count or len(plan.decode) != count:
        return [f"it places {len(plan.prefill)} and {len(plan.decode)} conversations, the problem has {count}"]
    ends = np.concatenate([plan.prefill, plan.decode])
    if ends.min() < 0 or ends.max() >= replicas:
        return [f"it names a replica outside 0..{replicas - 1}"]
    allowed = np.zeros((replicas, replicas), bool)
    for pair in problem.pairs:
        allowed[pair] = True
    wrong = np.flatnonzero(~allowed[plan.prefill, plan.decode])
    if len(wrong):
        c = int(wrong[0])
        ids = problem.replicas[plan.prefill[c]].id, problem.replicas[plan.decode[c]].id
        return [f"conversation {c} may not go from {ids[0]!r} to {ids[1]!r}: a role forbids it, or no link joins them"]
    small = problem.blocks > problem.kv_blocks[plan.decode]
    small |= (plan.prefill != plan.decode) & (problem.first_blocks > problem.kv_blocks[plan.prefill])
    return [f"conversation {c} does not fit the pool of its replica" for c in np.flatnonzero(small)]


def _evaluate(problem: PlacementProblem, plan: PlacementPlan, count: int | None) -> Evaluation:
    laws, turns, pools = tables_of(problem)
    conversations = problem.workload.num_conversations if count is None else count
    schedule = place(laws, turns, pools, plan.prefill, plan.decode, conversations)
    last = turns.first_turn[1 : conversations + 1] - 1
    ttfet_s = schedule.first_token_s[last] - turns.arrival_s[:conversations]
    makespan_s = float(schedule.end_s[last].max())
    transfer_j = float(transfers_j(problem, plan, schedule).sum())
    held = np.nan_to_num(schedule.released_s - schedule.admitted_s) * problem.blocks[:conversations]
    missed = _missed(problem, schedule, ttfet_s) if count is None else None
    return Evaluation(
        schedule=schedule,
        ttfet_s=ttfet_s,
        makespan_s=makespan_s,
        dynamic_j=schedule.dynamic_j,
        transfer_j=transfer_j,
        energy_j=float(schedule.dynamic_j.sum()) + transfer_j + problem.idle_w * makespan_s,
        kv_block_s=np.bincount(plan.decode[:conversations], weights=held, minlength=len(problem.replicas)),
        usd=problem.usd_per_hour * makespan_s / 3600,
        missed=missed,
    )


def transfers_j(problem: PlacementProblem, plan: PlacementPlan, schedule: Schedule) -> Float64[Array, " C"]:
    """Return the energy of each conversation's transfer; 0 for those that do not move."""
    joules = np.zeros(len(schedule.moved_s))
    if not any(link.joules_per_byte for link in problem.links):
        return joules
    first = problem.workload.first_turn_tokens
    for c in np.flatnonzero(~np.isnan(schedule.moved_s)):
        link = problem.link_of.get((int(plan.prefill[c]), int(plan.decode[c])))
        if link is not None and plan.prefill[c] != plan.decode[c]:
            joules[c] = link.joules_per_byte * problem.kv_bytes_per_token * float(first[c])
    return joules


def misses_of(problem: PlacementProblem, schedule: Schedule, ttfet_s: Float64[Array, " C"]) -> dict[str, Bool[Array, " C"]]:
    """Tell for each latency target which conversations miss it; empty without targets."""
    if problem.slo is None or problem.standalone is None:
        return {}
    workload, nothing = problem.workload, np.zeros(0)
    last = workload.first_turn[1:] - 1
    steps = np.where(workload.output_tokens > 1, workload.output_tokens - 1, np.nan)
    tpot_s = (schedule.end_s - schedule.first_token_s) / steps
    latencies = Latencies(
        ttft_s=schedule.first_token_s - schedule.turn_arrival_s,
        tpot_s=tpot_s,
        ttfet_s=ttfet_s,
        e2e_s=schedule.end_s[last] - workload.arrival_s,
        last_turn_tbt_s=tpot_s[last],
        tbt_s=nothing,
        last_turn_gap_normalised=nothing,
    )
    return latencies.misses(problem.slo, problem.standalone, workload)


def _missed(problem: PlacementProblem, schedule: Schedule, ttfet_s: Float64[Array, " C"]) -> Bool[Array, " C"] | None:
    if problem.slo is None or problem.standalone is None:
        return None
    missed = np.zeros(problem.workload.num_conversations, bool)
    for miss in misses_of(problem, schedule, ttfet_s).values():
        missed |= miss
    return missed
