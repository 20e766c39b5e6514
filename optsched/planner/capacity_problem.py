"""From a scenario to its fleet problem: the replica types worth having, and what each sustains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from optsched.capacity.classes import LengthClass, length_classes
from optsched.capacity.columns import Columns, dominated, evaluate_columns
from optsched.capacity.problem import FleetProblem
from optsched.capacity.solve import FleetInfeasibleError
from optsched.domain.plan import PlanReplica
from optsched.domain.scenario import FleetEntry, Objective, Scenario
from optsched.errors import SpecError
from optsched.planner.capacity_pools import Pool
from optsched.planner.capacity_targets import targets_of
from optsched.planner.capacity_types import (
    Dropped,
    cap_w,
    costs,
    label,
    lost_in_a_failure,
    objective_of,
    present_counts,
    replica_types,
    resources,
)  # fmt: skip
from optsched.planner.replicas import standalone_reference

Array = np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class PoolColumns:
    """The replica types of one pool, and what each sustains of its classes.

    Attributes
    ----------
    entries
        A fleet entry of one replica for each type.
    present
        Replicas that run today; None if nobody says.
    """

    pool: Pool
    entries: tuple[FleetEntry, ...]
    columns: Columns
    classes: tuple[LengthClass, ...]
    dropped: tuple[Dropped, ...]
    present: Int64[Array, " A"] | None


@dataclass(frozen=True, eq=False, slots=True)
class CapacityProblem:
    """A fleet problem with what it was made of.

    Attributes
    ----------
    problem
        What is solved. Its types and classes are those of all pools, one pool after the other.
    objective
        What it minimises; over all hours where there are periods.
    parts
        Of each pool.
    """

    problem: FleetProblem
    objective: Objective
    parts: tuple[PoolColumns, ...]

    @property
    def pool_of_type(self) -> Int64[Array, " A"]:
        """Index of the pool that each type serves."""
        return np.repeat(np.arange(len(self.parts)), [len(part.entries) for part in self.parts])

    @property
    def replicas(self) -> tuple[PlanReplica, ...]:
        """One replica of each type."""
        return tuple(replica for part in self.parts for replica in part.columns.replicas)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """Types that were considered and left out."""
        return tuple(each for part in self.parts for each in part.dropped)

    def counts_of(self, index: int, counts: Int64[Array, " A"]) -> Int64[Array, " a"]:
        """Return the counts of one pool's types."""
        return np.asarray(counts[self.pool_of_type == index])

    def fleet(self, index: int, counts: Int64[Array, " A"]) -> tuple[FleetEntry, ...]:
        """Return one pool's fleet entries of so many replicas of each type."""
        mine = zip(self.parts[index].entries, self.counts_of(index, counts).tolist(), strict=True)
        return tuple(entry.replace(count=count) for entry, count in mine if count > 0)

    def usd_per_hour(self, counts: Int64[Array, " A"]) -> float:
        """Return the price of a fleet, on average over its periods."""
        return self._mean_over_periods(np.array([replica.usd_per_hour for replica in self.replicas]) * counts)

    def power_w(self, counts: Int64[Array, " A"]) -> float:
        """Return the sum of the power caps of a fleet, on average over its periods."""
        return self._mean_over_periods(np.array([cap_w(replica) for replica in self.replicas]) * counts)

    def _mean_over_periods(self, per_type: Float64[Array, " A"]) -> float:
        hours = {part.pool.period: part.pool.hours for part in self.parts}
        mine = np.array([self.parts[index].pool.hours for index in self.pool_of_type])
        return float(mine @ per_type) / sum(hours.values())


def pool_columns(scenario: Scenario, pool: Pool, tightness: float = 1.0) -> PoolColumns:
    """Return the types worth having for one pool: those that serve something, and that no other replaces.

    Parameters
    ----------
    scenario
        What is asked.
    pool
        One of its pools.
    tightness
        Factor on all latency targets.

    Raises
    ------
    InfeasibleError
        If no gpu of the supply holds the llm, or none serves anything within the targets.
    """
    alone = scenario.only(pool.service)
    types, dropped = replica_types(alone, pool.llm)
    targets = targets_of(pool.service.slo, standalone_reference(pool.llm, alone), pool.workload, tightness)
    classes = length_classes(pool.name or pool.service.name, pool.workload)
    engine = scenario.engine
    columns = evaluate_columns(
        [each.replica for each in types], classes, targets, block_tokens=engine.block_tokens,
        max_batched_tokens=engine.max_batched_tokens, max_sequences=engine.max_sequences,
    )  # fmt: skip
    objective = objective_of(scenario)
    _, uses, _ = resources(alone, columns.replicas)
    instead = dominated(columns, costs(objective, columns)[0], uses)
    entries = tuple(each.entry for each in types)
    present = present_counts(alone, pool.llm, entries)
    keep = []
    for a, entry in enumerate(entries):
        better, runs = instead[a], present is not None and present[a] > 0
        if not columns.rate_per_s[a].any() and not runs:
            dropped.append(Dropped(label(entry), columns.reason[a][0]))
        elif better is not None and not runs:
            why = f"{label(entries[better])} is as fast on every class, and costs and takes no more"
            dropped.append(Dropped(label(entry), why))
        else:
            keep.append(a)
    if not keep:
        raise FleetInfeasibleError(
            f"No replica type serves anything: {dropped[-1].label}: {dropped[-1].reason}. Loosen the targets."
        )
    kept = None if present is None else present[keep]
    return PoolColumns(pool, tuple(entries[a] for a in keep), columns.of(keep), tuple(classes), tuple(dropped), kept)


def capacity_problem(scenario: Scenario, pools: Sequence[Pool], tightness: float = 1.0) -> CapacityProblem:
    """Build the fleet problem of a scenario's pools.

    Parameters
    ----------
    scenario
        What is asked.
    pools
        Whom the fleet serves.
    tightness
        Factor on all latency targets.

    Raises
    ------
    InfeasibleError
        If no gpu of the supply holds an llm.
    SpecError
        If changes cost money and something else is minimised.
    """
    columns = {(pool.service.name, pool.period): pool_columns(scenario, pool, tightness) for pool in pools if pool.period == 0}
    parts = [_in_period(columns[pool.service.name, 0], pool) for pool in pools]
    objective = objective_of(scenario)
    labels = [f"{part.pool.name}: {label(entry)}" if part.pool.name else label(entry) for part in parts for entry in part.entries]
    names, uses, limits = _resources(scenario, parts)
    rates = _blocks([part.columns.rate_per_s for part in parts])
    own = [costs(objective, part.columns) for part in parts]
    request_cost = _blocks([per_request * part.pool.hours for (_, per_request), part in zip(own, parts, strict=True)])
    entries = [entry for part in parts for entry in part.entries]
    follows = _follows(parts)
    change = _change_costs(scenario, objective, len(entries))
    problem = FleetProblem(
        classes=tuple(each.name for part in parts for each in part.classes),
        demand_per_s=np.concatenate([part.pool.rate_per_s * np.array([c.share for c in part.classes]) for part in parts]),
        types=tuple(labels), roles=tuple(entry.role for entry in entries), rate_per_s=rates,
        cost=np.concatenate([cost * part.pool.hours for (cost, _), part in zip(own, parts, strict=True)]),
        request_cost=request_cost, resources=names, uses=uses, limits=limits, lost=lost_in_a_failure(scenario, entries),
        present=_present(parts) if follows is None else None, follows=None if change is None else follows, change_cost=change,
    )  # fmt: skip
    return CapacityProblem(problem, objective, tuple(parts))


def _change_costs(scenario: Scenario, objective: Objective, count: int) -> Float64[Array, " A"] | None:
    if scenario.current is None:
        return None
    usd = scenario.current.cost_of_change_usd
    if usd and objective != "cost":
        raise SpecError(
            f"{usd:g} USD cannot be weighed against {objective}; minimise cost, or set it to 0",
            field="current.cost_of_change_usd",
        )
    return np.full(count, usd)


def _in_period(part: PoolColumns, pool: Pool) -> PoolColumns:
    """Return the columns of the same service in another period: the same conversations at another rate."""
    if pool is part.pool:
        return part
    renamed = tuple(replace(each, name=each.name.replace(part.pool.name, pool.name, 1)) for each in part.classes)
    return replace(part, pool=pool, classes=renamed, dropped=())


def _blocks(matrices: Sequence[Float64[Array, "a j"]]) -> Float64[Array, "A J"]:
    """Return matrices along a diagonal: no pool's types serve another's classes."""
    found = np.zeros((sum(len(each) for each in matrices), sum(each.shape[1] for each in matrices)))
    row = column = 0
    for each in matrices:
        found[row : row + len(each), column : column + each.shape[1]] = each
        row, column = row + len(each), column + each.shape[1]
    return found


def _resources(
    scenario: Scenario, parts: Sequence[PoolColumns]
) -> tuple[tuple[str, ...], Float64[Array, "A K"], Float64[Array, " K"]]:
    """Return what there is only so much of, in each period anew."""
    replicas = [replica for part in parts for replica in part.columns.replicas]
    names, uses, limits = resources(scenario, replicas)
    period = np.repeat([part.pool.period for part in parts], [len(part.entries) for part in parts])
    number = int(period.max()) + 1
    if number == 1:
        return names, uses, limits
    suffix = {part.pool.period: part.pool.name.rpartition(", ")[2] for part in parts}
    every = tuple(f"{name} ({suffix[index]})" for index in range(number) for name in names)
    return every, np.hstack([uses * (period == index)[:, None] for index in range(number)]), np.tile(limits, number)


def _present(parts: Sequence[PoolColumns]) -> Int64[Array, " A"] | None:
    given = [part.present for part in parts if part.present is not None]
    return np.concatenate(given) if given else None


def _follows(parts: Sequence[PoolColumns]) -> Int64[Array, " A"] | None:
    """Return for each type itself in the period before, that of the first period being the last; None with one period."""
    last = max(part.pool.period for part in parts)
    if last == 0:
        return None
    start, first = {}, 0
    for part in parts:
        start[part.pool.service.name, part.pool.period] = first
        first += len(part.entries)
    found = [np.arange(len(part.entries)) + start[part.pool.service.name, (part.pool.period - 1) % (last + 1)] for part in parts]
    return np.concatenate(found).astype(np.int64)
