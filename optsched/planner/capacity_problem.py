"""From a scenario to its fleet problem: the replica types worth having, and what each sustains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from optsched import catalog
from optsched.capacity.classes import LengthClass, length_classes
from optsched.capacity.columns import Columns, Targets, dominated, evaluate_columns
from optsched.capacity.problem import FleetProblem
from optsched.domain.llm import Llm
from optsched.domain.plan import PlanReplica, Standalone
from optsched.domain.scenario import FleetEntry, LatencyTarget, Objective, Role, Scenario, Slo
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, OptschedError
from optsched.planner.replicas import make_replica, standalone_reference

ROLES: tuple[Role, ...] = ("mixed", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A replica type that takes no part, and why."""

    label: str
    reason: str


@dataclass(frozen=True, eq=False)
class CapacityProblem:
    """A fleet problem with what it was made of.

    Attributes
    ----------
    problem, columns
        What is solved; types and columns are in the same order.
    entries
        A fleet entry of one replica for each type.
    classes
        The conversations' classes.
    dropped
        Types that were considered and left out.
    """

    problem: FleetProblem
    columns: Columns
    entries: tuple[FleetEntry, ...]
    classes: tuple[LengthClass, ...]
    dropped: tuple[Dropped, ...]


def capacity_problem(
    scenario: Scenario, llm: Llm, workload: Workload, rate_per_s: float, tightness: float = 1.0
) -> CapacityProblem:
    """Build the fleet problem of a scenario.

    Parameters
    ----------
    scenario, llm, workload
        What is asked.
    rate_per_s
        Conversations per second.
    tightness
        Factor on all latency targets.

    Raises
    ------
    InfeasibleError
        If no gpu of the supply holds the llm.
    """
    types, dropped = [], []
    for entry in candidate_entries(scenario):
        try:
            types.append((entry, make_replica(llm, entry, label(entry), scenario.engine.block_tokens)))
        except OptschedError as error:
            dropped.append(Dropped(label(entry), str(error)))
    if not types:
        raise InfeasibleError(dropped[0].reason if dropped else "The supply is empty.")
    reference = standalone_reference(llm, scenario)
    classes = length_classes(llm.name, workload)
    columns = evaluate_columns(
        [replica for _, replica in types], classes, targets_of(scenario.slo, reference, workload, tightness),
        block_tokens=scenario.engine.block_tokens, max_batched_tokens=scenario.engine.max_batched_tokens,
        max_sequences=scenario.engine.max_sequences,
    )  # fmt: skip
    demand = rate_per_s * np.array([each.share for each in classes])
    cost, request_cost = _costs(scenario, columns)
    resources, uses, limits = _resources(scenario, columns)
    keep, why = [], dominated(columns, cost, uses)
    for a, (entry, _) in enumerate(types):
        if not columns.rate_per_s[a].any():
            dropped.append(Dropped(label(entry), columns.reason[a][0]))
        elif (better := why[a]) is not None:
            dropped.append(
                Dropped(label(entry), f"{label(types[better][0])} is as fast on every class, and costs and takes no more")
            )
        else:
            keep.append(a)
    columns = Columns(
        tuple(columns.replicas[a] for a in keep), columns.rate_per_s[keep], columns.batch[keep], columns.joules[keep],
        tuple(columns.reason[a] for a in keep),
    )  # fmt: skip
    entries = tuple(types[a][0] for a in keep)
    present, change_cost = _present(scenario, entries)
    problem = FleetProblem(
        classes=tuple(each.name for each in classes), demand_per_s=demand,
        types=tuple(label(entry) for entry in entries), roles=tuple(entry.role for entry in entries),
        rate_per_s=columns.rate_per_s, cost=cost[keep], request_cost=request_cost[keep], resources=resources, uses=uses[keep],
        limits=limits, lost=_lost(scenario, entries), present=present, change_cost=change_cost,
    )  # fmt: skip
    return CapacityProblem(problem, columns, entries, tuple(classes), tuple(dropped))


def candidate_entries(scenario: Scenario) -> Iterator[FleetEntry]:
    """Yield one replica of every gpu, cap, tensor-parallel degree within a node and role, or of the scenario's own fleet."""
    if scenario.fleet:
        yield from (entry.replace(count=1) for entry in scenario.fleet)
        return
    for name, supply in scenario.supply.items():
        sheet = catalog.gpu(name).datasheet
        largest = min(supply.limit, supply.gpus_per_node or sheet.gpus_per_node)
        for cap in supply.power_caps_w or (sheet.power_w,):
            tp = 1
            while tp <= largest:
                yield from (FleetEntry(gpu=name, power_cap_w=cap, role=role, tp=tp) for role in ROLES)
                tp *= 2


def label(entry: FleetEntry) -> str:
    """Return the name of a replica type: gpu, cap, GPUs per replica, and role."""
    cap = "" if entry.power_cap_w is None else f"@{entry.power_cap_w:g}W"
    return f"{entry.gpu}{cap} x{entry.tp * entry.pp} {entry.role}"


def targets_of(slo: Slo, reference: Standalone, workload: Workload, tightness: float = 1.0) -> Targets:
    """Return what a column is held to.

    Seconds are taken as they are. A multiple of the standalone latency becomes that multiple of the median standalone time: of
    the first token for TTFT, and between tokens for the others, whose conversations it stretches as a whole.
    """
    alone = standalone_latency(workload, reference.coefficients, reference.max_batched_tokens)
    token_s = float(np.median(alone.last_turn_tbt_s[alone.last_turn_tbt_s > 0])) if np.any(alone.last_turn_tbt_s > 0) else None

    def least(targets: list[LatencyTarget | None], seconds: bool) -> float | None:
        given = []
        for target in targets:
            if target is not None and target.seconds is not None and seconds:
                given.append(target.seconds)
            elif target is not None and target.standalone_factor is not None and token_s is not None:
                given.append(target.standalone_factor * token_s)
        return tightness * min(given) if given else None

    stretched = least([slo.ttfet, slo.e2e], seconds=False)
    steady = least([slo.tbt, slo.tpot], seconds=True)
    both = [each for each in (stretched, steady) if each is not None]
    first_s = None
    if slo.ttft is not None and slo.ttft.seconds is not None:
        first_s = tightness * slo.ttft.seconds
    return Targets(first_s, min(both) if both else None)


def objective_of(scenario: Scenario) -> Objective:
    """Return what capacity minimises: the first of a scenario's objectives that is a cost, else money."""
    costs: tuple[Objective, ...] = ("cost", "energy", "gpus")
    return next((each for each in scenario.objective.minimise if each in costs), "cost")


def _costs(scenario: Scenario, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Return the first objective per replica, and per conversation per second."""
    objective, none = objective_of(scenario), np.zeros(columns.rate_per_s.shape)
    if objective == "energy":
        return np.array([replica.coefficients.idle_w for replica in columns.replicas]), columns.joules
    if objective == "gpus":
        return np.array([float(replica.tp * replica.pp) for replica in columns.replicas]), none
    return np.array([replica.usd_per_hour for replica in columns.replicas]), none


def _resources(scenario: Scenario, columns: Columns) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    names = [f"supply.{name}" for name in scenario.supply]
    limits = [float(supply.limit) for supply in scenario.supply.values()]
    gpus = [replica.tp * replica.pp for replica in columns.replicas]
    uses = [[float(n) if r.gpu == name else 0.0 for name in scenario.supply] for r, n in zip(columns.replicas, gpus, strict=True)]
    extra = (
        ("limits.power_w", scenario.limits.power_w, [r.power_cap_w * n for r, n in zip(columns.replicas, gpus, strict=True)]),
        ("limits.usd_per_hour", scenario.limits.usd_per_hour, [r.usd_per_hour for r in columns.replicas]),
    )
    for name, limit, used in extra:
        if limit is not None:
            names.append(name)
            limits.append(limit)
            for row, value in zip(uses, used, strict=True):
                row.append(value)
    return tuple(names), np.array(uses), np.array(limits)


def _lost(scenario: Scenario, entries: tuple[FleetEntry, ...]) -> np.ndarray | None:
    if scenario.limits.survive == "none":
        return None
    if scenario.limits.survive == "replica":
        return np.ones(len(entries), np.int64)
    nodes = {name: supply.gpus_per_node or catalog.gpu(name).datasheet.gpus_per_node for name, supply in scenario.supply.items()}
    return np.array([max(1, nodes[entry.gpu] // (entry.tp * entry.pp)) for entry in entries], np.int64)


def _present(scenario: Scenario, entries: tuple[FleetEntry, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the replicas of each type that run today, and the cost of changing one; what no type stands for goes in any case."""
    if scenario.current is None:
        return None, None
    now: dict[str, int] = {}
    for entry in scenario.current.fleet:
        sheet = catalog.gpu(entry.gpu).datasheet
        named = label(entry.replace(power_cap_w=entry.power_cap_w or sheet.power_w))
        now[named] = now.get(named, 0) + entry.count
    present = np.array([now.get(label(entry), 0) for entry in entries], np.int64)
    return present, np.full(len(entries), scenario.current.cost_of_change_usd)


def replicas_of(problem: CapacityProblem, counts: np.ndarray) -> tuple[FleetEntry, ...]:
    """Return the fleet entries of so many replicas of each type."""
    return tuple(entry.replace(count=int(count)) for entry, count in zip(problem.entries, counts, strict=True) if count > 0)


def watts(problem: CapacityProblem, counts: np.ndarray) -> float:
    """Return the sum of the power caps of a fleet."""
    caps = [_cap_w(replica) for replica in problem.columns.replicas]
    return float(np.dot(counts, caps))


def _cap_w(replica: PlanReplica) -> float:
    return replica.power_cap_w * replica.tp * replica.pp
