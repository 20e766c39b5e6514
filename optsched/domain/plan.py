"""The plan file: replicas, links, policies, placement, what is predicted, and how good it is proven to be."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from optsched.domain.dtypes import Dtype
from optsched.domain.efficiency import Origin
from optsched.domain.frozen import Frozen
from optsched.domain.llm import Llm
from optsched.domain.results import Metrics
from optsched.domain.scenario import EngineSpec, PlacementPolicyName, Role, Slo
from optsched.domain.slowdown import Slowdown
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Arrivals, Recipe

Status = Literal["OPTIMAL", "FEASIBLE", "NO_PLAN", "INFEASIBLE"]


class PlanLlm(Frozen):
    """An llm's shape and where its weights are: a safetensors folder, a GGUF file, or None for seeded random ones."""

    name: str
    shape: Llm
    weights: str | None = None


class Standalone(Frozen):
    """The tier that a conversation's standalone latency is computed on: one mixed replica, nothing else running."""

    gpu: str
    power_cap_w: float
    tp: int = 1
    max_batched_tokens: int = Field(gt=0)
    coefficients: StepLaw


class PlanSlo(Slo):
    """The scenario's latency targets, and the standalone reference they may refer to."""

    standalone: Standalone


class PlanWorkload(Frozen):
    """The conversations: an embedded recipe or a trace file, with everything needed to rebuild them exactly.

    Attributes
    ----------
    sha256
        Of the trace file's bytes, or of the recipe's canonical JSON.
    seed
        Seed of the arrivals and, for a recipe, of the lengths.
    """

    recipe: Recipe | None = None
    trace: str | None = None
    sha256: str
    seed: int = Field(ge=0)
    conversations: int | None = Field(default=None, gt=0)
    turns: int | None = Field(default=None, gt=0)
    arrivals: Arrivals

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.recipe is None) == (self.trace is None):
            raise ValueError("a plan's workload is either a recipe or a trace path")
        return self


class PlanReplica(Frozen):
    """One copy of an llm on a group of tp x pp GPUs of one tier.

    Attributes
    ----------
    kv_blocks
        Blocks of cache in its pool.
    max_batched_tokens
        Token budget of its steps, where it differs from the engine's.
    dtype
        Of its weights, where it is not the llm's.
    coefficients
        Its step law.
    host
        Replicas on the same shared host slow each other down (`StepLaw.busy_slowdown`); None: a machine of its own.
    usd_per_hour
        Price of all its GPUs.
    """

    id: str
    llm: str
    gpu: str
    power_cap_w: float = Field(gt=0)
    role: Role
    tp: int = Field(default=1, gt=0)
    pp: int = Field(default=1, gt=0)
    kv_blocks: int = Field(gt=0)
    max_batched_tokens: int | None = Field(default=None, gt=0)
    dtype: Dtype | None = None
    coefficients: StepLaw
    origin: Origin
    host: str | None = None
    usd_per_hour: float = Field(default=0, ge=0)


class PlanLink(Frozen):
    """The link between two replicas, by id; `busy_slowdown` as of `Link`, where they share a host."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    latency_s: float = Field(ge=0)
    bytes_per_s: float = Field(gt=0)
    joules_per_byte: float = Field(default=0, ge=0)
    busy_slowdown: Slowdown = (1.0,)


class PlanBatching(Frozen):
    """How batches are composed on every replica."""

    policy: str
    rho_s_per_block: float = Field(default=0, ge=0)
    parameters: dict[str, float] = {}


class Assignment(Frozen):
    """Where one conversation's first turn is prefilled and where it is decoded, by replica id."""

    conversation: int
    prefill: str
    decode: str


class PlanPlacement(Frozen):
    """The placement policy and the placement it led to in the prediction (or, for ``optimised``, the placement to follow)."""

    policy: PlacementPolicyName
    parameters: dict[str, float] = {}
    assignments: tuple[Assignment, ...] = ()


class Certificate(Frozen):
    """How far from the best the plan can be: value and proven bound under one named evaluator.

    Attributes
    ----------
    evaluator
        What computed `value`, and what `bound` is a lower bound of.
    objective
        What is minimised, with its unit.
    gap
        ``(value - bound) / value``, 0 when proven optimal.
    """

    evaluator: str
    objective: str
    value: float
    bound: float
    gap: float = Field(ge=0)
    status: Status
    solver: str


class Plan(Frozen):
    """A whole plan file (``schema = "optsched/plan"``); self-contained but for the trace or weights it names."""

    scenario_sha256: str
    llms: tuple[PlanLlm, ...] = Field(min_length=1)
    slo: PlanSlo
    workload: PlanWorkload
    engine: EngineSpec
    replicas: tuple[PlanReplica, ...] = Field(min_length=1)
    links: tuple[PlanLink, ...] = ()
    batching: PlanBatching
    placement: PlanPlacement
    predicted: Metrics
    certificate: Certificate

    def violations(self) -> list[str]:
        """List every rule that the plan breaks, in plain sentences; an empty list means that it can be executed."""
        broken: list[str] = []
        ids = [replica.id for replica in self.replicas]
        names = {llm.name for llm in self.llms}
        for replica_id in sorted({i for i in ids if ids.count(i) > 1}):
            broken.append(f"replica id {replica_id!r} is used twice; give each replica its own")
        for replica in self.replicas:
            if replica.llm not in names:
                broken.append(f"replica {replica.id!r} serves {replica.llm!r}, which llms[] does not list")
        roles = {replica.id: replica.role for replica in self.replicas}
        if "mixed" not in roles.values() and not {"prefill", "decode"} <= set(roles.values()):
            broken.append("there are no replicas to decode on, or none to prefill on; add the missing role or a mixed one")
        joined = {(link.source, link.target) for link in self.links}
        for link in self.links:
            broken.extend(
                f"a link names replica {end!r}, which does not exist" for end in (link.source, link.target) if end not in roles
            )
        for item in self.placement.assignments:
            broken.extend(self._assignment_violations(item, roles, joined))
        seen = [item.conversation for item in self.placement.assignments]
        if len(set(seen)) != len(seen):
            broken.append("a conversation is assigned twice; it is placed once and pinned")
        known = self.workload.conversations
        if known is not None and any(not 0 <= index < known for index in seen):
            broken.append(f"a conversation is assigned that the workload of {known} does not have")
        value, bound = self.certificate.value, self.certificate.bound
        if bound > value * (1 + 1e-9):
            broken.append(f"its certificate's bound {bound:g} lies above its value {value:g}; plan it again")
        return broken

    @staticmethod
    def _assignment_violations(item: Assignment, roles: dict[str, Role], joined: set[tuple[str, str]]) -> list[str]:
        name = f"conversation {item.conversation}"
        unknown = [end for end in (item.prefill, item.decode) if end not in roles]
        if unknown:
            return [f"{name} is assigned to replica {unknown[0]!r}, which does not exist"]
        broken = []
        if roles[item.prefill] == "decode":
            broken.append(f"{name} is prefilled on {item.prefill!r}, whose role is decode")
        if roles[item.decode] == "prefill":
            broken.append(f"{name} is decoded on {item.decode!r}, whose role is prefill")
        if item.prefill != item.decode and (item.prefill, item.decode) not in joined:
            broken.append(f"{name} moves from {item.prefill!r} to {item.decode!r}, but no link joins them")
        return broken


class NamedPlan(Frozen):
    """The plan of one service, or of one period, or of one service in one period.

    Attributes
    ----------
    name
        By which it is chosen.
    hours
        How long it lasts in a day; None: all day.
    """

    name: str
    hours: float | None = Field(default=None, gt=0)
    plan: Plan


class PlanSet(Frozen):
    """Plans side by side or one after the other, each with replicas of its own (``schema = "optsched/plan-set"``)."""

    plans: tuple[NamedPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.plans]
        if len(set(names)) != len(names):
            raise ValueError(f"plan names must differ: {', '.join(names)}")
        return self
