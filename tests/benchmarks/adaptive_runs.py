"""Who is run in ``bench_adaptive.py``: the rivals, every setting of ``adaptive``, and placements that know all; and how each did.

The conversations are those of ConServe's evaluation (arXiv 2606.01839): ``$OPTSCHED_DATA/conserve/trace_profile_summary.csv``, or
without it the packaged recipe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from optsched import catalog
from optsched.domain.accounting import energy_j
from optsched.domain.plan import Plan, PlanWorkload
from optsched.domain.results import Latencies, StandaloneLatency
from optsched.domain.scenario import FleetEntry, LatencyTarget, Objective, PlacementPolicyName, Role, Scenario, Slo
from optsched.domain.standalone import standalone_latency
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload
from optsched.placement.greedy import greedy
from optsched.placement.problem import PlacementPlan
from optsched.planner.certify import problem_of
from optsched.planner.optimise import place
from optsched.planner.plan import plan_scenario
from optsched.planner.replan import with_batching, with_workload
from optsched.planner.tune import settings, tbt_target_s
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

Fleet = tuple[tuple[Role, int, float], ...]
"""Of A40: role, count, cap in W."""
CAPS_W = (200.0, 250.0, 300.0)
FOUR: tuple[Fleet, ...] = (
    *((("mixed", 4, cap),) for cap in CAPS_W), *((("prefill", 1, 300.0), ("decode", 3, cap)) for cap in CAPS_W),
)  # fmt: skip
THREE: tuple[Fleet, ...] = ((("mixed", 3, 200.0),), (("mixed", 3, 300.0),))
RIVALS: tuple[PlacementPolicyName, ...] = ("collocated", "full-disaggregation", "per-turn-emulated", "conserve")
AIMS: tuple[Objective, ...] = ("ttfet", "slo_misses", "energy")
FORESEEN_PACES = ((0.0, None), (0.28, None), (0.28, 0.5), (0.45, None), (0.45, 0.5), (0.85, None))
"""Paces of long decodes that placements which know all are run with, in TBT targets, and shares of the pool above which (or the
default)."""
START_PACE = 0.45
"""That of the run of ``adaptive`` which their search starts from."""
WORK = 300_000
"""Turns that each of those searches times again, some tenths of a second."""
FIGURES = (
    "p95", "kJ", "kJ on", "p99", "max", "TBT p95", "E2E p95", "TTFET %", "TBT %", "E2E %", "any %", "makespan", "near TTFET %",
    "near TBT %", "near E2E %",
)  # fmt: skip
P95, KJ, KJ_ON, ANY, EACH, NEAR = 0, 1, 2, 10, (7, 8, 9), (12, 13, 14)
SHOWN = 12
"""Figures that are printed; "near" ones count conversations beyond nine tenths of a target."""
Figures = Float64[np.ndarray, "seeds figures"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Whoever is run: with one plan for all arrivals, or with a placement for each."""

    name: str
    fleet: Fleet
    draft: Plan
    aim: Objective | None = None

    def plan(self, rate: float, seed: int) -> Plan:
        """Return the plan that is executed."""
        plan = self.draft.replace(workload=conversations(rate, seed)[0])
        return plan if self.aim is None else place(plan, foreseen(self.fleet, self.aim, rate, seed))


class Runs:
    """Figures of executions, each computed once and written into a journal, so that a run that was stopped can go on."""

    def __init__(self, journal: Path | None = None) -> None:
        self._journal = journal
        self._known: dict[tuple[str, float, int], tuple[float, ...]] = {}
        if journal is not None and journal.is_file():
            for line in journal.read_text().splitlines():
                name, rate, seed, found = json.loads(line)
                self._known[name, rate, seed] = tuple(found)

    def figures(self, who: Contender, rate: float, seeds: Sequence[int]) -> Figures:
        """Return the figures under some arrivals."""
        return np.array([self._one(who, rate, seed) for seed in seeds])

    def _one(self, who: Contender, rate: float, seed: int) -> tuple[float, ...]:
        key = who.name, rate, seed
        if key not in self._known:
            self._known[key] = run(who.plan(rate, seed), rate, seed)
            if self._journal is not None:
                with self._journal.open("a") as file:
                    file.write(json.dumps([*key, self._known[key]]) + "\n")
        return self._known[key]


def run(plan: Plan, rate: float, seed: int) -> tuple[float, ...]:
    """Return the `FIGURES` of one execution; GPUs of the supply that a plan leaves out idle, or are off ("kJ on")."""
    workload = conversations(rate, seed)[1]
    log = simulate(plan, workload, record_steps=False)
    alone = standalone(rate, seed, plan.slo.standalone.coefficients, plan.slo.standalone.max_batched_tokens)
    latency = Latencies.of(log, workload, alone, "true")
    missed, near = (
        latency.misses(Slo(ttfet=target, tbt=target, e2e=target), alone, workload)
        for target in (LatencyTarget(percentile=95, standalone_factor=factor) for factor in (5, 4.5))
    )
    idle_w = np.array([replica.coefficients.idle_w for replica in plan.replicas])
    joules = energy_j(plan, log)
    assert log.dynamic_j is not None
    assert joules is not None
    unused_w, off_w = (4 - len(plan.replicas)) * idle_w.mean(), float(idle_w[log.dynamic_j == 0].sum())
    ttfet = latency.ttfet_s / alone.ttfet_s
    found = (
        np.percentile(ttfet, 95), (joules + unused_w * log.makespan_s) / 1e3, (joules - off_w * log.makespan_s) / 1e3,
        np.percentile(ttfet, 99), ttfet.max(), np.percentile(latency.last_turn_gap_normalised, 95),
        np.percentile(latency.e2e_s / alone.e2e_s, 95), *(100 * missed[name].mean() for name in ("ttfet", "tbt", "e2e")),
        100 * np.any(list(missed.values()), axis=0).mean(), log.makespan_s,
        *(100 * near[name].mean() for name in ("ttfet", "tbt", "e2e")),
    )  # fmt: skip
    return tuple(float(value) for value in found)


def rivals() -> Iterator[Contender]:
    """Yield each rival policy on one prefiller at 300 W and three decoders at 300 or 200 W; all mixed, if it mixes."""
    for policy in RIVALS:
        for cap in (300.0, 200.0):
            fleet: Fleet = (("prefill", 1, 300.0), ("decode", 3, cap))
            yield Contender(f"{policy} {cap:.0f}", fleet, planned(fleet, policy))


def online(fleets: Sequence[Fleet]) -> Iterator[Contender]:
    """Yield every setting of ``adaptive``; decodes gather at the default of ``start_s``: half of the grid."""
    for fleet in fleets:
        draft = adaptive(fleet)
        for plan in settings(draft, load_workload(draft.workload)):
            if "start_s" not in plan.placement.parameters:
                yield Contender(f"{shown(fleet)}, {setting(plan)}", fleet, plan)


def clairvoyant(fleets: Sequence[Fleet]) -> Iterator[Contender]:
    """Yield policy ``optimised``: conversations placed by a search that knows arrivals and lengths."""
    for fleet in fleets:
        draft = adaptive(fleet)
        draft = draft.replace(placement=draft.placement.replace(policy="optimised"))
        for aim in AIMS:
            for pace, above_share in FORESEEN_PACES:
                plan = paced(draft, pace, above_share)
                yield Contender(f"foreseen, {shown(fleet)}, for {aim}, {setting(plan)}", fleet, plan, aim)


@cache
def foreseen(fleet: Fleet, aim: Objective, rate: float, seed: int) -> PlacementPlan:
    """Return the best placement that a search finds with all known, from that of ``adaptive`` on the same fleet on."""
    described, workload = conversations(rate, seed)
    draft = paced(adaptive(fleet), START_PACE).replace(workload=described)
    log, first = simulate(draft, workload, record_steps=False), workload.first_turn[:-1]
    start = PlacementPlan.of(log.prefill_replica[first], log.decode_replica[first])
    return greedy(problem_of(draft, workload, aim), seed=seed, work=WORK, start=start)


@cache
def planned(fleet: Fleet, policy: PlacementPolicyName) -> Plan:
    """Return a policy's plan on a fleet, with targets of five times the standalone latency."""
    asked, five = catalog.scenario("swe-agent-a40-conserve"), LatencyTarget(percentile=95, standalone_factor=5)
    entries = tuple(
        FleetEntry(
            gpu="a40", power_cap_w=cap, role=role, count=count, max_batched_tokens=8192 if role == "prefill" else None
        )
        for role, count, cap in fleet
    )  # fmt: skip
    supply = {"a40": asked.supply["a40"].replace(power_caps_w=CAPS_W)}
    scenario: Scenario = asked.replace(slo=Slo(ttfet=five, tbt=five, e2e=five), supply=supply, fleet=entries)
    return plan_scenario(scenario, trace=trace(), policy=policy).plan


@cache
def adaptive(fleet: Fleet) -> Plan:
    """Return a plan of ``adaptive`` with ``paced`` that keeps the roles of a fleet."""
    plan = planned(fleet, "collocated" if fleet[0][0] == "mixed" else "conserve")
    placement = plan.placement.replace(policy="adaptive", parameters={}, assignments=())
    return with_batching(plan.replace(placement=placement), "paced")


def paced(plan: Plan, pace: float, above_share: float | None = None) -> Plan:
    """Return the plan with long decodes paced, in TBT targets, where the pool is fuller than a share."""
    told = {"pace_s": pace * tbt_target_s(plan, load_workload(plan.workload))}
    if above_share is not None:
        told["above_share"] = above_share
    return plan.replace(batching=plan.batching.replace(parameters={**plan.batching.parameters, **told}))


def shown(fleet: Fleet) -> str:
    """Return a fleet in words."""
    return " + ".join(f"{count} x {cap:.0f} W{'' if role == 'mixed' else f' {role}'}" for role, count, cap in fleet)


def setting(plan: Plan) -> str:
    """Return in words what distinguishes a point of ours on the same fleet."""
    own, pace = plan.placement.parameters, plan.batching.parameters
    above = f" above {pace['above_share']:.0%}" if "above_share" in pace else ""
    words = f"{1e3 * pace['pace_s']:.0f} ms{above}" if pace["pace_s"] else "not paced"
    held = f", held at {1e3 * own['longest_step_s']:.0f} ms" if "longest_step_s" in own else ""
    return words + held + (f", chunks of {pace['chunk_tokens']:.0f}" if "chunk_tokens" in pace else "")


@cache
def trace() -> Path | None:
    """Return the real trace's path, if there is one."""
    path = Path(os.environ.get("OPTSCHED_DATA", "")) / "conserve" / "trace_profile_summary.csv"
    return path if "OPTSCHED_DATA" in os.environ and path.is_file() else None


@cache
def conversations(rate: float, seed: int) -> tuple[PlanWorkload, Workload]:
    """Return the conversations under some arrivals, and their description."""
    described = with_workload(adaptive(FOUR[0]), trace(), rate, seed).workload
    return described, load_workload(described)


@cache
def standalone(rate: float, seed: int, law: StepLaw, max_batched_tokens: int) -> StandaloneLatency:
    """Return each conversation's latency alone."""
    return standalone_latency(conversations(rate, seed)[1], law, max_batched_tokens)
