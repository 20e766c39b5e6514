"""Which GPUs, and how many: the cheapest fleet whose simulation keeps the targets, and nothing in it to spare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from optsched import catalog
from optsched.capacity.prices import relaxation_prices
from optsched.capacity.solve import FleetAnswer, FleetInfeasibleError, solve_fleet
from optsched.capacity.survival import largest_share
from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Certificate, PlanWorkload
from optsched.domain.results import Metrics
from optsched.domain.scenario import Limits, PolicySpec, Scenario
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, SpecError
from optsched.placement.policies import ALL_MIXED
from optsched.placement.solved import relative_gap
from optsched.planner.candidates import fleets
from optsched.planner.capacity_answer import EVALUATOR, OBJECTIVES, CapacityPlan, Iteration
from optsched.planner.capacity_problem import capacity_problem, label, objective_of, replicas_of, watts
from optsched.planner.plan import Planned, drafts_of, plan_scenario
from optsched.simulator.simulate import simulate
from optsched.traces.loading import describe_workload, load_workload

UTILISATION = 0.95
TIGHTER = 0.94
MOST_ITERATIONS = 40
SEEDS = 3
"""Seeds that a fleet is simulated with: the scenario's and those that follow."""


def capacity(
    scenario: Scenario,
    *,
    base: Path | None = None,
    trace: Path | None = None,
    rate_per_s: float | None = None,
    seed: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> CapacityPlan:
    """Find the cheapest fleet that keeps a scenario's targets.

    The fleet problem is solved at a limit of utilisation; the fleet found is simulated with several seeds; while a target is
    missed the limit is lowered. Then every replica is tried for whether the fleet could do without it.

    Parameters
    ----------
    scenario
        What is asked; its ``[[fleet]]``, if any, names the only replica types to choose from.
    base, trace, rate_per_s, seed
        As of `optsched.planner.plan.plan_scenario`.
    progress
        Called with the fleets tried so far and a guess of their number.

    Raises
    ------
    FleetInfeasibleError
        If no fleet within the limits keeps the targets; it names the fewest limits to relax.
    SpecError
        If the scenario asks for what capacity cannot plan.
    """
    search = _Search(scenario, base, trace, rate_per_s, seed, progress)
    return search.run()


class _Search:
    """One capacity question: its fleet problem, and the fleets simulated so far."""

    def __init__(
        self, scenario: Scenario, base: Path | None, trace: Path | None, rate_per_s: float | None, seed: int | None,
        progress: Callable[[float, float], None] | None,
    ) -> None:  # fmt: skip
        _refuse_what_is_not_planned(scenario)
        self.scenario, self.base, self.trace, self.progress = scenario, base, trace, progress
        assert scenario.workload is not None
        assert scenario.llm is not None
        described = describe_workload(scenario.workload, base, trace=trace, rate_per_s=rate_per_s, seed=seed)
        workload = load_workload(described)
        if workload.concurrency is not None:
            raise SpecError(
                "'closed': capacity plans for arrivals that do not depend on the fleet", field="workload.arrivals.process"
            )
        self.llm, self.workload, self.rate_per_s, self.seed = catalog.llm(scenario.llm), workload, rate_per_s, described.seed
        self.offered_per_s = described.arrivals.rate_per_s or _rate_of(workload)
        self.problem = capacity_problem(scenario, self.llm, workload, self.offered_per_s)
        self.tried: dict[tuple[int, ...], tuple[Scenario | None, tuple[str, float]]] = {}
        self.workloads: dict[int, tuple[PlanWorkload, Workload]] = {0: (described, workload)}
        self.iterations: list[Iteration] = []

    def run(self) -> CapacityPlan:
        """Tighten until the targets hold, then leave out what is not needed."""
        full: FleetAnswer | None = None
        try:
            full = solve_fleet(self.problem.problem, gap=1e-4, time_limit_s=60.0)
            counts = self._tighten()
        except FleetInfeasibleError as error:
            counts = self._of_the_whole_supply(self._explained(error))
        counts = self._without_waste(counts)
        fixed = self._simulate(counts)[0]
        assert fixed is not None
        planned = plan_scenario(fixed, base=self.base, trace=self.trace, rate_per_s=self.rate_per_s, seed=self.seed)
        return self._answer(counts, planned, full)

    def _tighten(self) -> np.ndarray:
        share = UTILISATION
        for _ in range(MOST_ITERATIONS):
            answer = self._solve(share)
            kept, worst = self._simulate(answer.plan.counts)
            self._note(share, answer.plan.counts, kept is not None, worst)
            if kept is not None:
                return answer.plan.counts
            share *= TIGHTER
        raise InfeasibleError(
            f"No fleet kept the targets in {MOST_ITERATIONS} attempts; loosen them, or plan a fleet of your own."
        )

    def _of_the_whole_supply(self, error: FleetInfeasibleError) -> np.ndarray:
        """Return the cheapest fleet of all GPUs that keeps the targets: a workload that ends may need less than an endless one.

        Raises
        ------
        FleetInfeasibleError
            The error given, if there is none.
        """
        if self.problem.problem.lost is not None:
            raise error
        place = {label(entry): index for index, entry in enumerate(self.problem.entries)}
        found = []
        for policy in ("collocated", "conserve"):
            for fleet in fleets(self.scenario, self.llm, policy):
                counts = np.zeros(len(place), np.int64)
                named = [label(entry.replace(count=1)) for entry in fleet]
                if all(name in place for name in named):
                    for name, entry in zip(named, fleet, strict=True):
                        counts[place[name]] += entry.count
                    found.append(counts)
        found.sort(key=lambda counts: float(self.problem.problem.cost @ counts))
        for counts in found[:MOST_ITERATIONS]:
            kept, worst = self._simulate(counts)
            self._note(UTILISATION, counts, kept is not None, worst)
            if kept is not None:
                return counts
        raise error

    def _explained(self, error: FleetInfeasibleError) -> FleetInfeasibleError:
        """Return an error that tells a lack of capacity from targets that were missed in simulation."""
        if not self.iterations:
            return error
        name, excess = self.iterations[-1].worst
        missed = f"The largest fleet within the limits misses {name} {100 * excess:.3g} points more often than its target allows."
        return FleetInfeasibleError(f"{missed} {error}", error.relax)

    def _solve(self, share: float) -> FleetAnswer:
        problem = self.problem.problem
        return solve_fleet(replace(problem, utilisation=np.full(len(problem.types), share)), gap=1e-4, time_limit_s=60.0)

    def _without_waste(self, counts: np.ndarray) -> np.ndarray:
        """Leave out replicas, the dearest first, as long as the targets are still kept; none if failures are insured against."""
        if self.problem.problem.lost is not None:
            return counts
        order = np.argsort(-self.problem.problem.cost, kind="stable")
        again = True
        while again:
            again = False
            for a in order:
                fewer = counts.copy()
                fewer[a] -= 1
                if fewer[a] < 0 or not self._complete(fewer):
                    continue
                kept, worst = self._simulate(fewer)
                self._note(None, fewer, kept is not None, worst)
                if kept is not None:
                    counts, again = fewer, True
                    break
        return counts

    def _complete(self, counts: np.ndarray) -> bool:
        """Tell whether a fleet both prefills and decodes."""
        roles = {entry.role for entry, count in zip(self.problem.entries, counts, strict=True) if count > 0}
        return "mixed" in roles or {"prefill", "decode"} <= roles

    def _note(self, share: float | None, counts: np.ndarray, met: bool, worst: tuple[str, float]) -> None:
        cost = float(self.problem.problem.cost @ counts)
        self.iterations.append(Iteration(share, replicas_of(self.problem, counts), cost, met, worst))
        if self.progress is not None:
            self.progress(len(self.iterations), max(10, len(self.iterations) + 1))

    def _simulate(self, counts: np.ndarray) -> tuple[Scenario | None, tuple[str, float]]:
        """Return the scenario of a fleet and a policy, None if it misses a target with any seed; and the target missed most."""
        key = tuple(counts.tolist())
        if key not in self.tried:
            self.tried[key] = self._simulate_anew(counts)
        return self.tried[key]

    def _simulate_anew(self, counts: np.ndarray) -> tuple[Scenario | None, tuple[str, float]]:
        fixed = self.scenario.replace(fleet=replicas_of(self.problem, counts), limits=Limits(), current=None, periods=())
        least = ("nothing", 2.0)
        for policy in _policies(fixed):
            chosen = fixed.replace(policy=policy)
            worst = self._worst_of_all_seeds(chosen)
            if worst[1] <= 0:
                return chosen, worst
            least = min(least, worst, key=lambda each: each[1])
        return None, least

    def _worst_of_all_seeds(self, fixed: Scenario) -> tuple[str, float]:
        """Return the target that a fleet misses most, with the seeds up to the first with which it misses any."""
        worst = ("nothing", -1.0)
        for number in range(SEEDS):
            described, workload = self._workload(number)
            draft = drafts_of(fixed, self.llm, described, fixed.policy.placement)[0]
            try:
                metrics = measure_plan(draft, simulate(draft, workload, record_steps=False), workload)
            except InfeasibleError as error:
                return str(error), 1.0
            worst = max(worst, _worst(self.scenario, metrics), key=lambda each: each[1])
            if worst[1] > 0:
                break
        return worst

    def _workload(self, number: int) -> tuple[PlanWorkload, Workload]:
        """Return the scenario's conversations with its own seed plus a number."""
        if number not in self.workloads:
            assert self.scenario.workload is not None
            described = describe_workload(
                self.scenario.workload, self.base, trace=self.trace, rate_per_s=self.rate_per_s, seed=self.seed + number
            )
            self.workloads[number] = described, load_workload(described)
        return self.workloads[number]

    def _answer(self, counts: np.ndarray, planned: Planned, full: FleetAnswer | None) -> CapacityPlan:
        share = max(1e-9, largest_share(self.problem.problem, counts))
        # What the fleet cannot sustain for ever is left out of use and prices; the bound is one only if all can be.
        problem = replace(self.problem.problem, demand_per_s=self.problem.problem.demand_per_s * min(1.0, share * (1 - 1e-6)))
        same = replace(problem, limits=problem.uses.T @ counts, lost=None, present=None, change_cost=None)
        best = solve_fleet(same, gap=1e-4)
        used = best.plan if np.array_equal(best.plan.counts, counts) else replace(best.plan, counts=counts)
        value = problem.value(used)
        bound = 0.0 if full is None else min(full.bound, value)
        certificate = Certificate(
            evaluator=EVALUATOR, objective=OBJECTIVES[objective_of(self.scenario)], value=value, bound=bound,
            gap=relative_gap(value, bound), status="FEASIBLE" if relative_gap(value, bound) else "OPTIMAL", solver="highs",
        )  # fmt: skip
        shares = used.utilisation(problem)
        return CapacityPlan(
            planned=planned,
            fleet=replicas_of(self.problem, counts),
            cost_usd_per_hour=sum(
                r.usd_per_hour * n for r, n in zip(self.problem.columns.replicas, counts.tolist(), strict=True)
            ),
            power_w=watts(self.problem, counts),
            certificate=certificate,
            prices=relaxation_prices(problem),
            one_more={} if full is None else self._one_more(full),
            slo_price=None if full is None else self._slo_price(),
            sustained=min(1.0, share),
            utilisation={problem.types[a]: float(shares[a]) for a in np.flatnonzero(counts)},
            iterations=tuple(self.iterations),
            problem=self.problem,
        )

    def _one_more(self, full: FleetAnswer) -> dict[str, float]:
        """Return per limit by how much one more unit would lower the cost of the best fleet."""
        problem = self.problem.problem
        found = {}
        for k, name in enumerate(problem.resources):
            limits = problem.limits.copy()
            limits[k] += 1
            found[name] = full.value - solve_fleet(replace(problem, limits=limits), gap=1e-4, time_limit_s=30.0).value
        return found

    def _slo_price(self) -> float:
        """Return by how much the relaxation's cost falls per per cent by which all targets are loosened (averaged over +-1 %)."""
        values = []
        for tightness in (0.99, 1.01):
            try:
                made = capacity_problem(self.scenario, self.llm, self.workload, self.offered_per_s, tightness)
                values.append(relaxation_prices(made.problem).value)
            except InfeasibleError:
                return float("inf")
        return (values[0] - values[1]) / 2


def _policies(scenario: Scenario) -> list[PolicySpec]:
    """Return the policies to try on a fleet: the scenario's placement if it suits the roles, or those that do; then pacing."""
    own, mixed = scenario.policy, {entry.role for entry in scenario.fleet} == {"mixed"}
    if mixed == (own.placement in ALL_MIXED):
        tried = [own]
    elif mixed:
        balanced = own.replace(placement="collocated", placement_parameters={"oracle": 0, "admission": 0})
        tried = [balanced, balanced.replace(placement_parameters={"oracle": 0})]
    else:
        tried = [own.replace(placement="conserve", placement_parameters={})]
    if own.batching == "vllm-chunked":
        last = "adaptive" if mixed else "conserve"
        tried.append(own.replace(placement=last, placement_parameters={}, batching="paced", batching_parameters={}))
    return tried


def _worst(scenario: Scenario, metrics: Metrics) -> tuple[str, float]:
    """Return the target whose violations exceed what it allows most, and by how much."""
    found = ("nothing", -1.0)
    for name in type(scenario.slo).model_fields:
        target = getattr(scenario.slo, name)
        if target is not None:
            excess = metrics.slo_violations[name] - (1 - target.percentile / 100) - 1e-12
            found = max(found, (name, excess), key=lambda each: each[1])
    return found


def _rate_of(workload: Workload) -> float:
    span_s = float(workload.arrival_s.max(initial=0.0) - workload.arrival_s.min(initial=0.0))
    if span_s <= 0:
        raise SpecError(
            "the conversations arrive all at once; give a rate with --rate or workload.arrivals", field="workload.arrivals"
        )
    return (workload.num_conversations - 1) / span_s


def _refuse_what_is_not_planned(scenario: Scenario) -> None:
    if scenario.services:
        raise SpecError(
            f"capacity plans one service, this scenario has {len(scenario.services)}; give llm and [workload]", field="service"
        )
    if scenario.periods:
        raise SpecError("capacity plans for one arrival rate; give it with --rate, or plan each period", field="period")
