"""Solve a fleet problem: a proven cheapest fleet, or the fewest limits that stand in its way."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pulp

from optsched.capacity.enumeration import enumerated_fleet
from optsched.capacity.fleet import FleetFormulation, dual_bound, make_solver
from optsched.capacity.problem import TOLERANCE, FleetPlan, FleetProblem
from optsched.capacity.survival import failures_not_survived
from optsched.domain.plan import Status
from optsched.errors import InfeasibleError, NoPlanError, SolveError

PROVEN = 1e-6
"""A value within this share of its bound is proven optimal: the tolerance of floating-point solvers."""


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A limit that stands in the way, and what it would have to be."""

    limit: str
    now: float
    needed: float


class FleetInfeasibleError(InfeasibleError):
    """No fleet within the limits serves everything.

    Parameters
    ----------
    reason
        One line.
    relax
        The fewest limits to relax, and by how much; empty where no limit helps.
    """

    def __init__(self, reason: str, relax: tuple[Relaxation, ...] = ()) -> None:
        self.relax = relax
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class FleetAnswer:
    """A fleet, what it costs, and how much less any other could cost.

    Attributes
    ----------
    plan
        Counts and routing.
    status
        OPTIMAL: no fleet is cheaper by more than the tolerance of floating-point solvers, `PROVEN`, whatever gap was allowed.
        FEASIBLE: a limit on time or gap was met first.
    value, bound
        Of the objective.
    insured
        Types whose failure some fleet found on the way did not survive.
    """

    plan: FleetPlan
    status: Status
    value: float
    bound: float
    solver: str
    runtime_s: float
    insured: tuple[int, ...] = ()

    @property
    def gap(self) -> float:
        """``(value - bound) / value``, 0 when proven optimal."""
        return 0.0 if self.status == "OPTIMAL" or self.value <= 0 else (self.value - self.bound) / self.value


def solve_fleet(problem: FleetProblem, *, gap: float = 0.0, time_limit_s: float | None = None) -> FleetAnswer:
    """Return the cheapest fleet.

    Parameters
    ----------
    problem
        What is asked.
    gap
        Relative gap at which to stop.
    time_limit_s
        When to stop without a proof. Small problems are solved in a fraction of a second without looking at it.

    Raises
    ------
    FleetInfeasibleError
        If there is none; it names the fewest limits to relax.
    NoPlanError
        If the time ran out before any fleet was found.
    SolveError
        If the solver's answer breaks the problem.
    """
    started = time.perf_counter()
    _refuse_what_nobody_serves(problem)
    if (cheapest := enumerated_fleet(problem)) is not None:
        value = problem.value(_checked(problem, cheapest))
        return FleetAnswer(cheapest, "OPTIMAL", value, value, "highs", time.perf_counter() - started)
    formulation = FleetFormulation(problem)
    insured: set[int] = set()
    while True:
        left_s = None if time_limit_s is None else max(0.0, time_limit_s - (time.perf_counter() - started))
        plan, proven, bound = _optimise(problem, formulation, gap, left_s)
        fatal = failures_not_survived(problem, plan)
        if not fatal:
            break
        for price in fatal.values():
            formulation.survive(price)
        insured.update(fatal)
    value = problem.value(_checked(problem, plan))
    done = proven and value - bound <= max(PROVEN * abs(value), PROVEN)
    return FleetAnswer(
        plan,
        "OPTIMAL" if done else "FEASIBLE",
        value,
        min(bound, value),
        "highs",
        time.perf_counter() - started,
        tuple(sorted(insured)),
    )


def _checked(problem: FleetProblem, plan: FleetPlan) -> FleetPlan:
    if broken := problem.violations(plan):
        raise SolveError(f"The solver's fleet breaks a rule (a bug, please report it): {broken[0]}")
    return plan


def relaxed_value(problem: FleetProblem) -> float:
    """Return the least cost if fractions of replicas were allowed; infinite if even that is impossible."""
    formulation = FleetFormulation(replace(problem, lost=None, whole=False), relaxed=True)
    formulation.program.solve(make_solver(None, 0.0))
    if formulation.program.sol_status != pulp.LpSolutionOptimal:
        return float("inf")
    return float(pulp.value(formulation.program.objective) or 0.0)


def fewest_relaxations(problem: FleetProblem) -> tuple[Relaxation, ...]:
    """Return the fewest limits that have to be relaxed, and by how much at least; empty if relaxing all does not help."""
    formulation = FleetFormulation(
        replace(problem, limits=np.full(len(problem.limits), 1e12), present=None, follows=None, change_cost=None)
    )
    program, types = formulation.program, range(len(problem.types))
    extra, beyond = {}, {}
    for k, limit in enumerate(problem.limits.tolist()):
        most = float(formulation.ceiling @ problem.uses[:, k])
        extra[k] = program.add_variable(f"extra_{k}", lowBound=0, upBound=max(0.0, most - limit))
        beyond[k] = program.add_variable(f"beyond_{k}", cat=pulp.LpBinary)
        used = pulp.LpAffineExpression([(formulation.count[a], float(problem.uses[a, k])) for a in types])
        program += used <= limit + extra[k], f"elastic_{k}"
        program += extra[k] <= max(0.0, most - limit) * beyond[k], f"beyond_{k}"
    program.setObjective(pulp.lpSum(beyond.values()))
    _solve_until_it_survives(problem, formulation)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return ()
    fewest = round(sum(variable.value() or 0.0 for variable in beyond.values()))
    program += pulp.lpSum(beyond.values()) <= fewest, "fewest"
    scale = {k: 1 / max(1.0, limit) for k, limit in enumerate(problem.limits.tolist())}
    program.setObjective(pulp.LpAffineExpression([(extra[k], scale[k]) for k in extra]))
    _solve_until_it_survives(problem, formulation)
    found = []
    for k, limit in enumerate(problem.limits.tolist()):
        more = extra[k].value() or 0.0
        if more > TOLERANCE * max(1.0, limit):
            found.append(Relaxation(problem.resources[k], limit, limit + more))
    return tuple(found)


def _solve_until_it_survives(problem: FleetProblem, formulation: FleetFormulation) -> None:
    """Solve the program as it stands, with cuts for the failures that its fleet does not survive, until it survives all."""
    solved = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    while True:
        formulation.program.solve(make_solver(60.0, 0.0))
        if formulation.program.sol_status not in solved:
            return
        fatal = failures_not_survived(problem, formulation.extract_plan())
        if not fatal:
            return
        for price in fatal.values():
            formulation.survive(price)


def _refuse_what_nobody_serves(problem: FleetProblem) -> None:
    for stage, types in (("prefill", problem.prefills), ("decode", problem.decodes)):
        for j, label in enumerate(problem.classes):
            if problem.demand_per_s[j] > 0 and not any(problem.serves(a, j) for a in types):
                raise FleetInfeasibleError(
                    f"No replica type can {stage} {label!r} within its targets. Loosen the targets, or add a gpu to [supply]."
                )


def _optimise(
    problem: FleetProblem, formulation: FleetFormulation, gap: float, time_limit_s: float | None
) -> tuple[FleetPlan, bool, float]:
    """Return the best fleet of the program as it stands, whether it is proven best, and the bound."""
    program = formulation.program
    program.solve(make_solver(time_limit_s, gap))
    if program.sol_status == pulp.LpSolutionOptimal:
        return formulation.extract_plan(), True, dual_bound(program)
    if program.sol_status == pulp.LpSolutionIntegerFeasible:
        return formulation.extract_plan(), False, dual_bound(program)
    if program.status != pulp.LpStatusInfeasible:
        raise NoPlanError("No fleet was found in the time allowed. Allow more, or a larger gap.")
    relax = fewest_relaxations(problem)
    if not relax:
        raise FleetInfeasibleError("No number of replicas serves everything; a failure takes away more than the rest can carry.")
    needs = "; ".join(f"{each.limit} from {each.now:g} to {each.needed:g}" for each in relax)
    raise FleetInfeasibleError(f"The limits allow no fleet that serves everything. Raise {needs}.", relax)
