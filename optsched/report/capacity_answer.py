"""The answer of ``optsched capacity --json``, read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from optsched.domain.plan import Certificate
from optsched.domain.results import Metrics
from optsched.domain.scenario import Role

if TYPE_CHECKING:
    from optsched.planner.robustness import Disturbed, Robustness


class _Read(BaseModel):
    """A record of which later versions may know more keys."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FleetRow(_Read):
    """Replicas of one type."""

    gpu: str
    power_cap_w: float
    role: Role
    tp: int
    pp: int
    count: int
    dtype: str | None = None
    pool: str = ""

    @property
    def words(self) -> str:
        """It in words."""
        size = (f" tp {self.tp}" if self.tp > 1 else "") + (f" pp {self.pp}" if self.pp > 1 else "")
        dtype = f" {self.dtype}" if self.dtype else ""
        return f"{self.count} x {self.gpu}@{self.power_cap_w:g}W{dtype}{size} {self.role}"


class PriceRows(_Read):
    """What one more unit of each limit saves in the relaxation and in whole fleets, and what a rate and a target cost."""

    objective: str
    limits: dict[str, float]
    one_more: dict[str, float]
    demand: dict[str, float]
    rate_per_s: float
    targets_1_percent_looser: float | None


class Tried(_Read):
    """A fleet that was tried: with a share of each replica's full rate allowed, or from elsewhere (`origin`)."""

    origin: str = "one fewer"
    utilisation: float | None
    fleet: tuple[FleetRow, ...]
    cost: float
    met: bool
    worst_target: str
    excess_violations: float


class Dropped(_Read):
    """A replica type that takes no part, and why."""

    label: str
    reason: str


class FrontRow(_Read):
    """A fleet of the front; `simulated` has the figures of each pool, None where a conversation fits no replica."""

    fleet: tuple[FleetRow, ...]
    usd_per_hour: float
    power_w: float
    p95_latency_s: float
    chosen: bool
    simulated: tuple[Metrics | None, ...] = ()

    @property
    def words(self) -> str:
        """The fleet in words."""
        return " + ".join(row.words for row in self.fleet)

    @property
    def simulated_s(self) -> float | None:
        """Largest simulated 95th percentile end to end of its pools."""
        return max((each.e2e_s.p95 for each in self.simulated if each is not None and each.e2e_s.p95 is not None), default=None)

    @property
    def attainment(self) -> float | None:
        """Smallest share of a pool's conversations that meet every target; None where one was not simulated."""
        shares = [None if each is None else each.slo_attainment for each in self.simulated]
        known = [each for each in shares if each is not None]
        return min(known) if known and len(known) == len(shares) else None


class DisturbedRow(_Read):
    """The plan under other traffic."""

    factor: float
    attainment: float
    worst_target: str
    excess_violations: float
    ttft_p95_s: float | None
    tpot_p95_s: float | None
    usd_per_million_tokens: float | None

    def disturbed(self) -> Disturbed:
        """Return it as the planner has it."""
        from optsched.planner.robustness import Disturbed

        worst = (self.worst_target, self.excess_violations)
        return Disturbed(self.factor, self.attainment, worst, self.ttft_p95_s, self.tpot_p95_s, self.usd_per_million_tokens)


class RobustnessRows(_Read):
    """What the plan bears; a break point that was not found is None."""

    rate: tuple[DisturbedRow, ...] = Field(min_length=1)
    outputs: tuple[DisturbedRow, ...] = Field(min_length=1)
    rate_breaks: float | None
    outputs_break: float | None

    def robustness(self) -> Robustness:
        """Return it as the planner has it."""
        from optsched.planner.robustness import Robustness

        rate, outputs = (tuple(each.disturbed() for each in rows) for rows in (self.rate, self.outputs))
        breaks = (float("inf") if value is None else value for value in (self.rate_breaks, self.outputs_break))
        return Robustness(rate, outputs, *breaks)


class PoolRow(_Read):
    """One service in one period, with replicas of its own."""

    pool: str
    llm: str
    rate_per_s: float
    hours: float
    fleet: tuple[FleetRow, ...]
    predicted: Metrics


class CapacityAnswer(_Read):
    """A fleet with its proof, prices, and what was tried on the way."""

    fleet: tuple[FleetRow, ...]
    cost_usd_per_hour: float
    power_w: float
    predicted: Metrics
    certificate: Certificate
    prices: PriceRows
    utilisation: dict[str, float] = {}
    sustained: float = 1.0
    iterations: tuple[Tried, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    pools: tuple[PoolRow, ...] = ()
    pareto: tuple[FrontRow, ...] = ()
    robustness: dict[str, RobustnessRows] = {}

    @model_validator(mode="before")
    @classmethod
    def _name_the_only_pool(cls, data: object) -> object:
        """Put the robustness of a single pool under an empty name, as those of several are under theirs."""
        if isinstance(data, dict) and isinstance(found := data.get("robustness"), dict) and "rate_breaks" in found:
            return {**data, "robustness": {"": found}}
        return data

    @model_validator(mode="after")
    def _some_fleet(self) -> Self:
        if not self.fleet:
            raise ValueError("fleet has no replicas")
        return self

    @staticmethod
    def is_one(data: dict[str, object]) -> bool:
        """Tell whether plain data look like such an answer."""
        return {"fleet", "certificate", "prices"} <= data.keys()

    @property
    def words(self) -> str:
        """The fleet in words."""
        return " + ".join(row.words for row in self.fleet)

    @property
    def met(self) -> bool:
        """Whether a fleet was found that keeps every target."""
        return not self.iterations or any(each.met for each in self.iterations)
