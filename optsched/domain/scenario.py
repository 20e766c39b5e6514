"""The input file of plan and capacity: llm, workload, supply, latency targets, objective."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from optsched.domain.dtypes import Dtype
from optsched.domain.frozen import Frozen
from optsched.domain.workload import Arrivals

Role = Literal["prefill", "decode", "mixed"]
Objective = Literal["energy", "cost", "gpus", "ttfet", "slo_misses"]
PlacementPolicyName = Literal[
    "adaptive", "collocated", "conserve", "full-disaggregation", "optimised", "per-turn", "per-turn-emulated"
]


class WorkloadSpec(Frozen):
    """Where the conversations come from: a recipe in ``instances/workloads`` or a trace file, and their arrivals."""

    source: str
    conversations: int | None = Field(default=None, gt=0)
    turns: int | None = Field(default=None, gt=0)
    arrivals: Arrivals


class Supply(Frozen):
    """What may be used of one gpu: a fixed `count`, or at most `max` (for capacity), and what to choose from.

    Attributes
    ----------
    power_caps_w
        Power caps; absent: the datasheet's.
    dtypes
        Data types that a replica's weights may have (capacity chooses, a plan takes the only one); absent: the llm's own. The
        cache keeps the llm's type, and whether answers are as good is not judged.
    """

    count: int | None = Field(default=None, gt=0)
    max: int | None = Field(default=None, gt=0)
    power_caps_w: tuple[float, ...] = ()
    dtypes: tuple[Dtype, ...] = ()
    gpus_per_node: int | None = Field(default=None, gt=0)
    link: str | None = None

    @model_validator(mode="after")
    def _one_of_count_and_max(self) -> Self:
        if (self.count is None) == (self.max is None):
            raise ValueError("give either count (a fixed fleet) or max (what capacity may use)")
        if any(cap <= 0 for cap in self.power_caps_w):
            raise ValueError("power_caps_w must be positive watts")
        return self

    @property
    def limit(self) -> int:
        """GPUs that may be used."""
        return self.count or self.max or 0


class FleetEntry(Frozen):
    """Replicas that are fixed: `count` replicas of tp x pp GPUs each.

    Attributes
    ----------
    dtype
        Of their weights; absent: the llm's.
    service
        Name of the ``[[service]]`` that they serve; absent: any.
    """

    gpu: str
    power_cap_w: float | None = Field(default=None, gt=0)
    role: Role
    count: int = Field(default=1, gt=0)
    tp: int = Field(default=1, gt=0)
    pp: int = Field(default=1, gt=0)
    dtype: Dtype | None = None
    max_batched_tokens: int | None = Field(default=None, gt=0)
    service: str | None = None


class LatencyTarget(Frozen):
    """A percentile of a latency at most some seconds, or some factor of the conversation's standalone latency."""

    percentile: float = Field(default=95, gt=0, le=100)
    seconds: float | None = Field(default=None, gt=0)
    standalone_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.seconds is None) == (self.standalone_factor is None):
            raise ValueError("give either seconds or standalone_factor")
        return self


class Slo(Frozen):
    """Latency targets; those absent do not bind."""

    ttft: LatencyTarget | None = None
    tpot: LatencyTarget | None = None
    tbt: LatencyTarget | None = None
    ttfet: LatencyTarget | None = None
    e2e: LatencyTarget | None = None


class ObjectiveSpec(Frozen):
    """What to minimise; a list is lexicographic."""

    minimise: tuple[Objective, ...] = ("energy",)

    @field_validator("minimise", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.minimise:
            raise ValueError("minimise needs at least one objective")
        return self


class Limits(Frozen):
    """Limits on the whole fleet."""

    power_w: float | None = Field(default=None, gt=0)
    usd_per_hour: float | None = Field(default=None, gt=0)
    survive: Literal["none", "replica", "node"] = "none"


class EngineSpec(Frozen):
    """How every replica batches, unless a fleet entry says otherwise.

    Attributes
    ----------
    prefix_caching
        Whether prompts that begin alike share cache; it takes a workload that says which do.
    """

    block_tokens: int = Field(default=16, gt=0)
    max_batched_tokens: int = Field(default=2048, gt=0)
    max_sequences: int = Field(default=256, gt=0)
    chunked_prefill: bool = True
    watermark: float = Field(default=0.01, ge=0, lt=1)
    prefix_caching: bool = False


class PolicySpec(Frozen):
    """The policies a plan names when the command line does not."""

    batching: str = "vllm-chunked"
    placement: PlacementPolicyName = "conserve"
    batching_parameters: dict[str, float] = {}
    placement_parameters: dict[str, float] = {}


class CurrentFleet(Frozen):
    """What runs today, and what changing it costs."""

    fleet: tuple[FleetEntry, ...]
    cost_of_change_usd: float = Field(default=0, ge=0)


class Period(Frozen):
    """A stretch of the day with its own arrival rate."""

    name: str
    hours: float = Field(gt=0)
    rate_per_s: float = Field(gt=0)


class Service(Frozen):
    """One of several services on the same fleet."""

    name: str
    llm: str
    workload: WorkloadSpec
    slo: Slo = Slo()


class Scenario(Frozen):
    """A whole scenario file (``schema = "optsched/scenario"``)."""

    llm: str | None = None
    workload: WorkloadSpec | None = None
    slo: Slo = Slo()
    services: tuple[Service, ...] = Field(default=(), alias="service")
    supply: dict[str, Supply] = Field(min_length=1)
    fleet: tuple[FleetEntry, ...] = ()
    objective: ObjectiveSpec = ObjectiveSpec()
    limits: Limits = Limits()
    engine: EngineSpec = EngineSpec()
    policy: PolicySpec = PolicySpec()
    current: CurrentFleet | None = None
    periods: tuple[Period, ...] = Field(default=(), alias="period")
    transfer_link: str | None = None

    @property
    def all_services(self) -> tuple[Service, ...]:
        """The services, or the only one, named after its llm."""
        if self.llm is None or self.workload is None:
            return self.services
        return (Service(name=self.llm, llm=self.llm, workload=self.workload, slo=self.slo),)

    def only(self, service: Service) -> Scenario:
        """Return the scenario of one of its services alone."""
        if not self.services:
            return self

        def mine(fleet: tuple[FleetEntry, ...]) -> tuple[FleetEntry, ...]:
            return tuple(entry.replace(service=None) for entry in fleet if entry.service in (None, service.name))

        current = self.current.replace(fleet=mine(self.current.fleet)) if self.current else None
        return self.replace(
            llm=service.llm, workload=service.workload, slo=service.slo, services=(), fleet=mine(self.fleet), current=current
        )

    @model_validator(mode="after")
    def _one_service_or_several(self) -> Self:
        if bool(self.services) == (self.llm is not None or self.workload is not None):
            raise ValueError("give either llm and [workload], or one or more [[service]]")
        if not self.services and (self.llm is None or self.workload is None):
            raise ValueError("a scenario needs both llm and [workload]")
        names = [service.name for service in self.services]
        if len(set(names)) != len(names):
            raise ValueError(f"service names must differ: {', '.join(names)}")
        current = () if self.current is None else self.current.fleet
        for entry in (*self.fleet, *current):
            if entry.service is not None and entry.service not in names:
                known = f"there are {', '.join(names)}" if names else "there is no [[service]]"
                raise ValueError(f"a fleet entry serves {entry.service!r}, {known}; leave out the key, or mend the name")
        return self

    @model_validator(mode="after")
    def _fleet_within_supply(self) -> Self:
        used: dict[str, int] = {}
        for entry in self.fleet:
            if entry.gpu not in self.supply:
                raise ValueError(
                    f"[[fleet]] uses {entry.gpu!r}, which [supply] does not list; add it, or use {', '.join(self.supply)}"
                )
            used[entry.gpu] = used.get(entry.gpu, 0) + entry.count * entry.tp * entry.pp
        for gpu, count in used.items():
            if count > self.supply[gpu].limit:
                raise ValueError(
                    f"[[fleet]] needs {count} x {gpu}, but [supply] has {self.supply[gpu].limit}; raise it or shrink the fleet"
                )
        if self.fleet:
            roles = {entry.role for entry in self.fleet}
            if "mixed" not in roles and roles != {"prefill", "decode"}:
                raise ValueError(f"[[fleet]] has only {roles.pop()} replicas; add the other role, or use role 'mixed'")
        return self
