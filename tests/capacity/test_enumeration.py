"""Fleets of few types, found by listing counts, against HiGHS on the whole program."""

from __future__ import annotations

import dataclasses

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.capacity.enumeration import enumerated_fleet
from optsched.capacity.fleet import FleetFormulation, make_solver
from optsched.capacity.problem import FleetProblem
from optsched.domain.scenario import Role


def drawn(seed: int, types: int, classes: int, apart: bool, limit: float | None) -> FleetProblem:
    """Draw a problem of Melange's form: skewed demand on classes of work that types do at different rates."""
    rng = np.random.default_rng(seed)
    power = np.sort(rng.uniform(1, 12, types))
    work = np.outer(2.0 ** rng.uniform(0, 5, classes), np.ones(1)).ravel()
    rate = power[:, None] / work * rng.uniform(0.6, 1.4, (types, classes)) * (rng.random((types, classes)) < 0.9)
    parts: tuple[Role, ...] = ("mixed", "prefill", "decode")
    return FleetProblem(
        classes=tuple(f"class-{j}" for j in range(classes)),
        demand_per_s=rng.uniform(1, 6) * rng.dirichlet(np.full(classes, 0.3)) * (rng.random(classes) < 0.9),
        types=tuple(f"type-{a}" for a in range(types)),
        roles=tuple(parts[rng.integers(3)] if apart else parts[0] for _ in range(types)),
        rate_per_s=rate, utilisation=rng.uniform(0.7, 1.0, types), cost=power**0.9 * rng.uniform(0.8, 1.2, types),
        resources=() if limit is None else ("gpus",),
        uses=np.zeros((types, 0)) if limit is None else rng.choice([1.0, 2.0], (types, 1)),
        limits=np.zeros(0) if limit is None else np.array([limit]),
    )  # fmt: skip


def proven_by_highs(problem: FleetProblem) -> float | None:
    """Return the least cost that the whole program finds; None if it finds no fleet."""
    formulation = FleetFormulation(problem)
    formulation.program.solve(make_solver(None, 0.0))
    if formulation.program.sol_status != pulp.LpSolutionOptimal:
        return None
    return problem.value(formulation.extract_plan())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 14), st.booleans(), st.sampled_from([None, 4.0, 12.0]))
def test_no_fleet_of_the_whole_program_is_cheaper(seed: int, types: int, classes: int, apart: bool, limit: float | None) -> None:
    problem = drawn(seed, types, classes, apart, limit)
    plan, best = enumerated_fleet(problem), proven_by_highs(problem)
    if plan is None:  # there is no fleet, or nothing is asked for, or too much had to be listed
        return
    assert problem.violations(plan) == []
    assert best is not None
    assert problem.value(plan) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("apart", [False, True])
def test_counts_of_few_types_are_listed_to_the_proof(seed: int, apart: bool) -> None:
    problem = drawn(seed, 4, 30, apart=False, limit=None)
    if apart:
        problem = dataclasses.replace(problem, roles=("mixed", "prefill", "decode", "decode"))
    plan = enumerated_fleet(problem)
    assert plan is not None
    best = proven_by_highs(problem)
    assert best is not None
    assert problem.value(plan) == pytest.approx(best, rel=1e-6)


def test_what_it_is_not_made_for_is_left_to_the_whole_program() -> None:
    problem = drawn(0, 4, 8, apart=False, limit=None)
    assert enumerated_fleet(problem) is not None
    dear = problem.cost.copy()
    dear[0] = 0.0
    for change in (
        {"whole": True},
        {"lost": np.ones(4, np.int64)},
        {"request_cost": np.ones((4, 8))},
        {"present": np.zeros(4, np.int64), "change_cost": np.ones(4)},
        {"demand_per_s": np.zeros(8)},
        {"cost": dear},
    ):
        assert enumerated_fleet(dataclasses.replace(problem, **change)) is None
