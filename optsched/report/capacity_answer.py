"""The answer of ``optsched capacity --json``, read back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from optsched.domain.plan import Certificate
from optsched.domain.results import Metrics
from optsched.domain.scenario import Role


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

    @property
    def words(self) -> str:
        """It in words."""
        size = f" tp {self.tp}" if self.tp > 1 else ""
        return f"{self.count} x {self.gpu}@{self.power_cap_w:g}W{size} {self.role}"


class PriceRows(_Read):
    """What one more unit of each limit saves in the relaxation and in whole fleets, and what a rate and a target cost."""

    objective: str
    limits: dict[str, float]
    one_more: dict[str, float]
    demand: dict[str, float]
    rate_per_s: float
    targets_1_percent_looser: float | None


class Tried(_Read):
    """A fleet that was tried."""

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

    @staticmethod
    def is_one(data: dict[str, object]) -> bool:
        """Tell whether plain data look like such an answer."""
        return {"fleet", "certificate", "prices"} <= data.keys()
