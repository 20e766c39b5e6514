"""The fleets worth trying when a scenario fixes no roles: every split into roles, every combination of power caps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from optsched import catalog
from optsched.domain.dtypes import Dtype
from optsched.domain.llm import Llm
from optsched.domain.scenario import FleetEntry, Role, Scenario
from optsched.errors import InfeasibleError, SpecError
from optsched.placement.policies import ALL_MIXED
from optsched.planner.replicas import smallest_tp

EITHER = frozenset({"adaptive", "optimised"})
"""Placement policies that run on mixed replicas as well as on prefillers and decoders."""
MOST_SPLITS = 8
"""Replicas of one gpu up to which every number of prefillers is tried, and numbers that are tried where there are more."""


def fleets(scenario: Scenario, llm: Llm, policy: str) -> list[tuple[FleetEntry, ...]]:
    """Return the fleets that a placement policy may run on.

    A fixed ``[[fleet]]`` is kept, but with all roles mixed for the policies that mix them (for ``adaptive`` either way).
    Otherwise all GPUs of the supply are used, with the fewest GPUs per replica that hold the llm.

    Raises
    ------
    InfeasibleError
        If no gpu of the supply holds the llm, or a policy with two roles has only one replica.
    SpecError
        If the supply leaves the data type of weights open.
    """
    if scenario.fleet:
        if policy not in ALL_MIXED:
            return [scenario.fleet]
        mixed = tuple(entry.replace(role="mixed", max_batched_tokens=None) for entry in scenario.fleet)
        return [mixed] if policy not in EITHER or mixed == scenario.fleet else [mixed, scenario.fleet]
    sizes = replica_counts(scenario, llm)
    found: list[tuple[FleetEntry, ...]] = []
    if policy in ALL_MIXED or policy in EITHER:
        found.extend(tuple(fleet) for fleet in _mixed(scenario, sizes))
    if policy not in ALL_MIXED or policy in EITHER:
        found.extend(tuple(fleet) for fleet in _split(scenario, sizes))
    if not found:
        raise InfeasibleError(
            f"Policy {policy!r} needs a replica to prefill and another to decode, but the supply makes only one of {llm.name!r}. "
            "Raise the count in [supply], or use policy 'collocated'."
        )
    return [tuple(entry.replace(dtype=dtype_of(scenario, entry.gpu)) for entry in fleet) for fleet in found]


def replica_counts(scenario: Scenario, llm: Llm) -> dict[str, tuple[int, int]]:
    """Return for each gpu of the supply how many replicas it makes, and of how many GPUs each, without those too small.

    Raises
    ------
    InfeasibleError
        If no gpu holds the llm.
    """
    counts: dict[str, tuple[int, int]] = {}
    last: InfeasibleError | None = None
    for name, supply in scenario.supply.items():
        per_node = supply.gpus_per_node or catalog.gpu(name).datasheet.gpus_per_node
        try:
            tp = smallest_tp(llm.with_weights(dtype_of(scenario, name)), name, min(supply.limit, per_node))
        except InfeasibleError as error:
            last = error
        else:
            counts[name] = (supply.limit // tp, tp)
    if not counts and last is not None:
        raise last
    return counts


def caps_of(scenario: Scenario, gpu: str) -> tuple[float, ...]:
    """Return the power caps to choose from, in watts: those of the supply, or the datasheet's."""
    return scenario.supply[gpu].power_caps_w or (catalog.gpu(gpu).datasheet.power_w,)


def dtype_of(scenario: Scenario, gpu: str) -> Dtype | None:
    """Return the data type of weights on a gpu; None: the llm's own.

    Raises
    ------
    SpecError
        If the supply leaves a choice, which is capacity's.
    """
    dtypes = scenario.supply[gpu].dtypes
    if len(dtypes) > 1:
        raise SpecError(
            f"{', '.join(dtypes)}: a plan takes one data type; name one, or let optsched capacity choose",
            field=f"supply.{gpu}.dtypes",
        )
    return dtypes[0] if dtypes else None


def _entry(gpu: str, cap: float, role: Role, count: int, tp: int) -> list[FleetEntry]:
    return [FleetEntry(gpu=gpu, power_cap_w=cap, role=role, count=count, tp=tp)] if count else []


def _mixed(scenario: Scenario, sizes: dict[str, tuple[int, int]]) -> Iterator[list[FleetEntry]]:
    for caps in product(*(caps_of(scenario, gpu) for gpu in sizes)):
        yield [
            e for (gpu, (count, tp)), cap in zip(sizes.items(), caps, strict=True) for e in _entry(gpu, cap, "mixed", count, tp)
        ]


def _split(scenario: Scenario, sizes: dict[str, tuple[int, int]]) -> Iterator[list[FleetEntry]]:
    total = sum(count for count, _ in sizes.values())
    seen = set()
    for prefillers in product(*(_numbers(count) for count, _ in sizes.values())):
        if not 0 < sum(prefillers) < total:
            continue
        caps = [product(caps_of(scenario, gpu), caps_of(scenario, gpu)) for gpu in sizes]
        for choice in product(*caps):
            fleet = [
                entry
                for (gpu, (count, tp)), number, (prefill_cap, decode_cap) in zip(sizes.items(), prefillers, choice, strict=True)
                for entry in (
                    *_entry(gpu, prefill_cap, "prefill", number, tp), *_entry(gpu, decode_cap, "decode", count - number, tp),
                )
            ]  # fmt: skip
            key = tuple(fleet)
            if key not in seen:
                seen.add(key)
                yield fleet


def _numbers(count: int) -> list[int]:
    """Return how many of `count` replicas may prefill: any number, or `MOST_SPLITS` spread evenly where there are many."""
    if count <= MOST_SPLITS:
        return [*range(count + 1)]
    return sorted({round(k * count / MOST_SPLITS) for k in range(MOST_SPLITS + 1)})
