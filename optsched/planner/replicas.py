"""Turn gpus, caps and roles into a plan's replicas and the links between them."""

from __future__ import annotations

from collections.abc import Sequence

from optsched import catalog
from optsched.cost.links import achieved
from optsched.cost.memory import kv_token_budget
from optsched.cost.tables import origin, step_law
from optsched.domain.hardware import Link, Tier
from optsched.domain.llm import Llm
from optsched.domain.plan import PlanLink, PlanReplica, Standalone
from optsched.domain.scenario import FleetEntry, Role, Scenario
from optsched.domain.step_law import StepLaw
from optsched.errors import InfeasibleError, SpecError
from optsched.files import canonical_sha256

MAX_REPLICAS = 512


def smallest_tp(llm: Llm, gpu: str, limit: int) -> int:
    """Return the fewest GPUs (a power of two) whose memory holds the llm and some cache.

    Raises
    ------
    InfeasibleError
        If `limit` GPUs are too few.
    """
    tier, tp = catalog.tier(gpu), 1
    while True:
        try:
            kv_token_budget(llm, tier, tp=tp)
        except InfeasibleError:
            if 2 * tp > limit or llm.num_heads % (2 * tp):
                raise
            tp *= 2
        else:
            return tp


def make_replica(llm: Llm, entry: FleetEntry, identifier: str, block_tokens: int) -> PlanReplica:
    """Return one replica of a fleet entry, with its step law and its pool.

    Raises
    ------
    InfeasibleError
        If the llm does not fit.
    """
    gpu, own_dtype = catalog.gpu(entry.gpu), llm.dtype
    tier, llm = Tier(gpu, entry.power_cap_w or gpu.datasheet.power_w), llm.with_weights(entry.dtype)
    return PlanReplica(
        id=identifier,
        llm=llm.name,
        gpu=gpu.name,
        power_cap_w=tier.power_cap_w,
        role=entry.role,
        tp=entry.tp,
        pp=entry.pp,
        kv_blocks=kv_token_budget(llm, tier, tp=entry.tp, pp=entry.pp, block_tokens=block_tokens) // block_tokens,
        max_batched_tokens=entry.max_batched_tokens,
        dtype=None if llm.dtype == own_dtype else llm.dtype,
        coefficients=_law_of(llm, tier, entry.tp, entry.pp),
        origin=origin(gpu, llm, entry.tp, entry.pp),
        host="this machine" if gpu.shared_host else None,
        usd_per_hour=gpu.price.usd_per_hour * entry.tp * entry.pp,
    )


Laws = dict[tuple[str, str, float, int, int], StepLaw]
_LAWS: Laws = {}


def known_laws() -> Laws:
    """Return the step laws condensed so far, for another process to learn."""
    return dict(_LAWS)


def learn_laws(laws: Laws) -> None:
    """Take over step laws that another process condensed."""
    _LAWS.update(laws)


def _law_of(llm: Llm, tier: Tier, tp: int, pp: int) -> StepLaw:
    """Return a step law, which is condensed from the cost model once per llm and tier."""
    key = (canonical_sha256(llm), canonical_sha256(tier.gpu), tier.power_cap_w, tp, pp)
    if key not in _LAWS:
        link = catalog.link(tier.gpu.datasheet.interconnect)
        _LAWS[key] = step_law(llm, tier, tp=tp, pp=pp, link=link)
    return _LAWS[key]


def make_replicas(llm: Llm, fleet: Sequence[FleetEntry], block_tokens: int) -> tuple[PlanReplica, ...]:
    """Return the replicas of a fleet, named ``role-N`` in order.

    Raises
    ------
    SpecError
        If there are more than `MAX_REPLICAS`.
    """
    number = sum(entry.count for entry in fleet)
    if number > MAX_REPLICAS:
        raise SpecError(f"a plan names every replica, {number:,} are too many (at most {MAX_REPLICAS:,}); lower the counts")
    made: list[PlanReplica] = []
    count: dict[Role, int] = {}
    for entry in fleet:
        first = make_replica(llm, entry, f"{entry.role}-{count.get(entry.role, 0)}", block_tokens)
        for _ in range(entry.count):
            number = count.get(entry.role, 0)
            count[entry.role] = number + 1
            made.append(first.replace(id=f"{entry.role}-{number}"))
    return tuple(made)


def make_links(scenario: Scenario, replicas: Sequence[PlanReplica], back: bool = False) -> tuple[PlanLink, ...]:
    """Return the links from every replica that prefills to every other that decodes; with `back`, between any two.

    The link is the scenario's ``transfer_link``, else the supply's ``link``, else the interconnect of the source's gpu, at
    the rate that long messages reach.
    """
    joined: list[PlanLink] = []
    link_of = {gpu: _link_from(scenario, gpu) for gpu in {source.gpu for source in replicas}}
    for source in replicas:
        link = link_of[source.gpu]
        latency_s, bytes_per_s = achieved(link)
        joined.extend(
            PlanLink(
                source=source.id, target=target.id, latency_s=latency_s, bytes_per_s=bytes_per_s,
                joules_per_byte=link.joules_per_byte, busy_slowdown=link.busy_slowdown,
            )
            for target in replicas
            if target is not source and (back or (source.role != "decode" and target.role != "prefill"))
        )  # fmt: skip
    return tuple(joined)


def _link_from(scenario: Scenario, gpu: str) -> Link:
    name = scenario.transfer_link or scenario.supply[gpu].link or catalog.gpu(gpu).datasheet.interconnect
    return catalog.link(name)


def standalone_reference(llm: Llm, scenario: Scenario) -> Standalone:
    """Return the tier of standalone latencies: the supply's first gpu at its highest cap, the same for every fleet and policy."""
    name, supply = next(iter(scenario.supply.items()))
    gpu = catalog.gpu(name)
    cap = max(supply.power_caps_w, default=gpu.datasheet.power_w)
    tp = smallest_tp(llm, name, supply.limit)
    return Standalone(
        gpu=name,
        power_cap_w=cap,
        tp=tp,
        max_batched_tokens=scenario.engine.max_batched_tokens,
        coefficients=_law_of(llm, Tier(gpu, cap), tp, 1),
    )
