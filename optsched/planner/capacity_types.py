"""The replica types that a capacity plan chooses from, and what each costs and takes of the supply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64, Int64

from optsched import catalog
from optsched.capacity.columns import Columns
from optsched.domain.llm import Llm
from optsched.domain.plan import PlanReplica
from optsched.domain.scenario import FleetEntry, Objective, Role, Scenario
from optsched.errors import InfeasibleError, SpecError
from optsched.planner.replicas import make_replica

Array = np.ndarray
ROLES: tuple[Role, ...] = ("mixed", "prefill", "decode")
COSTS: tuple[Objective, ...] = ("cost", "energy", "gpus")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A replica type that takes no part, and why."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaType:
    """A fleet entry of one replica, and that replica."""

    entry: FleetEntry
    replica: PlanReplica


def replica_types(scenario: Scenario, llm: Llm) -> tuple[list[ReplicaType], list[Dropped]]:
    """Return the types that hold an llm, and why the others do not.

    Every gpu, cap, tensor-parallel degree within a node and role is one; several pipeline stages only where a whole node is too
    small; or those of the scenario's own fleet.

    Raises
    ------
    InfeasibleError
        If none holds it.
    """
    if scenario.fleet:
        types, dropped = _made(scenario, llm, (entry.replace(count=1) for entry in scenario.fleet))
    else:
        types, dropped = [], []
        for name in scenario.supply:
            for pp in _stages(scenario, name):
                fit, too_large = _made(scenario, llm, _entries(scenario, name, pp))
                dropped += too_large
                if fit:
                    types += fit
                    break
    if not types:
        raise InfeasibleError(dropped[0].reason)
    return types, dropped


def _made(scenario: Scenario, llm: Llm, entries: Iterator[FleetEntry]) -> tuple[list[ReplicaType], list[Dropped]]:
    types, dropped = [], []
    for entry in (_plain(each, llm) for each in entries):
        try:
            types.append(ReplicaType(entry, make_replica(llm, entry, label(entry), scenario.engine.block_tokens)))
        except (InfeasibleError, SpecError) as error:  # too small, or a degree that does not divide the heads
            dropped.append(Dropped(label(entry), str(error)))
    return types, dropped


def _node(scenario: Scenario, name: str) -> int:
    return scenario.supply[name].gpus_per_node or catalog.gpu(name).datasheet.gpus_per_node


def _stages(scenario: Scenario, name: str) -> Iterator[int]:
    pp, node = 1, min(scenario.supply[name].limit, _node(scenario, name))
    while pp * node <= scenario.supply[name].limit:
        yield pp
        pp *= 2


def _entries(scenario: Scenario, name: str, pp: int) -> Iterator[FleetEntry]:
    supply, largest = scenario.supply[name], min(scenario.supply[name].limit, _node(scenario, name))
    degrees = [2**power for power in range(largest.bit_length())] if pp == 1 else [2 ** (largest.bit_length() - 1)]
    caps = supply.power_caps_w or (catalog.gpu(name).datasheet.power_w,)
    for cap, dtype, tp, role in product(caps, supply.dtypes or (None,), degrees, ROLES):
        yield FleetEntry(gpu=name, power_cap_w=cap, role=role, tp=tp, pp=pp, dtype=dtype)


def label(entry: FleetEntry) -> str:
    """Return the name of a replica type: gpu, cap, data type if it is told, GPUs per replica, and role."""
    cap = "" if entry.power_cap_w is None else f"@{entry.power_cap_w:g}W"
    size = f"{entry.tp}" if entry.pp == 1 else f"{entry.tp}x{entry.pp}"
    return f"{entry.gpu}{cap}{f' {entry.dtype}' if entry.dtype else ''} x{size} {entry.role}"


def num_gpus(replica: PlanReplica) -> int:
    """Return the GPUs of a replica."""
    return replica.tp * replica.pp


def cap_w(replica: PlanReplica) -> float:
    """Return the power cap of all of a replica's GPUs."""
    return replica.power_cap_w * num_gpus(replica)


def objective_of(scenario: Scenario) -> Objective:
    """Return what capacity minimises: the first of a scenario's objectives that is a cost, else money."""
    return next((each for each in scenario.objective.minimise if each in COSTS), "cost")


def costs(objective: Objective, columns: Columns) -> tuple[Float64[Array, " A"], Float64[Array, "A J"]]:
    """Return the objective per replica, and per conversation per second: USD/h, watts, or GPUs."""
    none = np.zeros(columns.rate_per_s.shape)
    if objective == "energy":
        return np.array([replica.coefficients.idle_w for replica in columns.replicas]), columns.joules
    if objective == "gpus":
        return np.array([float(num_gpus(replica)) for replica in columns.replicas]), none
    return np.array([replica.usd_per_hour for replica in columns.replicas]), none


def resources(
    scenario: Scenario, replicas: Sequence[PlanReplica]
) -> tuple[tuple[str, ...], Float64[Array, "A K"], Float64[Array, " K"]]:
    """Return what there is only so much of: names, what a replica takes, and what there is."""
    names = [f"supply.{name}" for name in scenario.supply]
    limits = [float(supply.limit) for supply in scenario.supply.values()]
    columns = [[float(num_gpus(each)) if each.gpu == name else 0.0 for each in replicas] for name in scenario.supply]
    for name, limit, used in (
        ("limits.power_w", scenario.limits.power_w, [cap_w(each) for each in replicas]),
        ("limits.usd_per_hour", scenario.limits.usd_per_hour, [each.usd_per_hour for each in replicas]),
    ):
        if limit is not None:
            names.append(name)
            limits.append(limit)
            columns.append(used)
    return tuple(names), np.array(columns).T, np.array(limits)


def lost_in_a_failure(scenario: Scenario, entries: Sequence[FleetEntry]) -> Int64[Array, " A"] | None:
    """Return the replicas of each type that the failure to be survived takes away; None if none is."""
    if scenario.limits.survive == "none":
        return None
    if scenario.limits.survive == "replica":
        return np.ones(len(entries), np.int64)
    return np.array([max(1, _node(scenario, entry.gpu) // (entry.tp * entry.pp)) for entry in entries], np.int64)


def present_counts(scenario: Scenario, llm: Llm, entries: Sequence[FleetEntry]) -> Int64[Array, " A"] | None:
    """Return the replicas of each type that run today; None if the scenario does not say. What no type stands for goes anyway."""
    if scenario.current is None:
        return None
    now: dict[str, int] = {}
    for entry in scenario.current.fleet:
        named = label(_with_cap(_plain(entry, llm)))
        now[named] = now.get(named, 0) + entry.count
    return np.array([now.get(label(_with_cap(entry)), 0) for entry in entries], np.int64)


def _plain(entry: FleetEntry, llm: Llm) -> FleetEntry:
    """Return the entry without a data type that is the llm's anyway, so that one type has one name."""
    return entry.replace(dtype=None) if entry.dtype == llm.dtype else entry


def _with_cap(entry: FleetEntry) -> FleetEntry:
    return entry.replace(power_cap_w=entry.power_cap_w or catalog.gpu(entry.gpu).datasheet.power_w)
