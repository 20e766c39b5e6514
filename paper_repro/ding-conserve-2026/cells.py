"""One cell of the evaluation: a policy at caps, rate and seed, in the artifact's two runs or in one run of the whole system."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optsched.domain.plan import Plan
from optsched.domain.scenario import PlacementPolicyName
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

from ..tables import Row
from .conversations import arrivals, conversations, wrong_turns
from .fleets import decoders_only, make_plan
from .measure import alone, energy_apart, energy_row, energy_together, latencies
from .passes import Recorded, record, replay, replay_with_pauses
from .settings import Settings

Caps = tuple[int, int]

ARTIFACT = ("collocated", "full-disaggregation", "ampd", "conserve")
"""The paper's four policies, by the names used in all tables; ampd is what its authors emulate."""

WHOLE: dict[str, tuple[PlacementPolicyName, dict[str, float]]] = {
    "collocated": ("collocated", {}),
    "full-disaggregation": ("full-disaggregation", {"oracle": 1}),
    "conserve": ("conserve", {"oracle": 1}),
    "conserve-observable": ("conserve", {}),
    "ampd-visits": ("per-turn-emulated", {"oracle": 1}),
    "per-turn": ("per-turn", {"oracle": 1}),
}
"""Policies run as a whole: wrong turns of ampd-visits really go to the prefiller; per-turn predicts lengths honestly."""


@dataclass(frozen=True)
class Cell:
    """Where a run stands."""

    settings: Settings
    caps: Caps
    rate_per_s: float
    seed: int
    packaged: bool = False

    def plan(self, policy: PlacementPolicyName, **parameters: float) -> Plan:
        """Return a policy's plan."""
        return make_plan(self.settings, policy, self.caps, packaged=self.packaged, **parameters)

    @property
    def workload(self) -> Workload:
        """The conversations, arriving as the client sends them."""
        return conversations(self.settings).with_arrivals(arrivals(self.settings, self.rate_per_s, self.seed))

    def recorded(self) -> Recorded:
        """Run the first turns alone."""
        return record(self.plan("conserve", oracle=1), self.workload)

    def key(self, policy: str, reading: str) -> Row:
        """Return the columns that name a row."""
        return {
            "policy": policy, "caps": f"{self.caps[0]}/{self.caps[1]}", "rate_per_s": self.rate_per_s, "seed": self.seed,
            "reading": reading,
        }  # fmt: skip


def artifact_row(cell: Cell, policy: str, recorded: Recorded, wrong_share: float | None = None) -> Row:
    """Evaluate a policy as the artifact does.

    Parameters
    ----------
    cell
        Where.
    policy
        One of `ARTIFACT`.
    recorded
        The cell's run of first turns: the others arrive as its prefiller lets them.
    wrong_share
        Of ampd; None: as configured.
    """
    settings = cell.settings
    workload = conversations(settings)
    key = {**cell.key(policy, "artifact"), "served_per_s": recorded.served_per_s}
    if policy in ("collocated", "full-disaggregation"):
        plan = cell.plan(policy, **WHOLE[policy][1])  # type: ignore[arg-type]
        log, arriving = replay(plan, workload, recorded.execution_s)
        found = latencies(settings, log, arriving, alone(settings, plan), "paper")
        energy = energy_row(workload, energy_together(plan, log))
        return {**key, **found, **energy, "span_s": log.makespan_s, "transfers": len(log.transfers.start_s), "passes": 1.0}
    plan = decoders_only(cell.plan("conserve", oracle=1))
    share = settings.wrong_share if wrong_share is None else wrong_share
    wrong = wrong_turns(settings, workload, share if policy == "ampd" else 0.0)
    paused = replay_with_pauses(settings, plan, workload, recorded, wrong)
    log, first_turn_s = paused.log, recorded.decoder_s - recorded.execution_s
    found = latencies(settings, log, paused.workload, alone(settings, plan), "paper", first_turn_s + paused.queued_s)
    energy = energy_row(workload, energy_apart(plan, log, recorded, paused.block_s))
    return {
        **key, **found, **energy, "span_s": log.makespan_s, "transfers": len(log.transfers.start_s),
        "passes": float(paused.passes),
    }  # fmt: skip


def whole_rows(cell: Cell, policy: str, wrong_share: float | None = None) -> list[Row]:
    """Evaluate a policy in one run of the whole system, on both clocks.

    Parameters
    ----------
    cell
        Where.
    policy
        One of `WHOLE`.
    wrong_share
        Of ampd-visits; None: as configured.
    """
    settings = cell.settings
    name, parameters = WHOLE[policy]
    own = dict(parameters)
    if policy == "ampd-visits":
        own |= {"wrong_share": settings.wrong_share if wrong_share is None else wrong_share}
    if policy == "per-turn":
        own |= {"error": settings.error}
    plan, workload = cell.plan(name, **own), cell.workload
    log = simulate(plan, workload)
    energy = energy_row(workload, energy_together(plan, log))
    first = workload.first_turn[:-1]
    rest: Row = {
        "span_s": log.makespan_s, "transfers": len(log.transfers.start_s), "preemptions": float(log.preemptions),
        "queue_p95_s": float(np.percentile(log.queue_s[first], 95)),
        "admission_p95_s": float(np.percentile(log.admission_s[first], 95)),
    }  # fmt: skip
    standalone = alone(settings, plan)
    return [
        {**cell.key(policy, clock), **latencies(settings, log, workload, standalone, clock), **energy, **rest}
        for clock in ("paper", "true")
    ]
