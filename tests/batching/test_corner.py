"""The corner relaxation of the memory row: solved at once rather than after a search, it changes no answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from batch_problems import best_by_enumeration, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching import BatchPlan, BatchProblem, Status, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.batching.core_frame import DONE, TIES_OPEN
from optsched.batching.corner import Edges, begin, settle
from optsched.batching.generators import BatchRecipe, generate
from optsched.batching.memory_solver import solve_memory_row
from optsched.batching.workspace import SPAN, Workspace, empty_workspace

SPACE = empty_workspace(1000, 1 << 16, 1 << 17)


def value_with_corner_first(problem: BatchProblem) -> float:
    """Solve with the corner relaxation before any search."""
    choice = np.empty(problem.num_requests, np.int8)
    setting, value = solve_memory_row(
        SPACE, problem.pending_s.copy(), problem.kv_blocks.copy(), problem.hidden_blocks.copy(),
        problem.hidden_penalty_s.copy(), problem.memory_blocks, True, 10**7, 0, choice,
    )  # fmt: skip
    assert setting.search.code in (DONE, TIES_OPEN)
    assert BatchPlan(choice).violations(problem) == []
    assert value == pytest.approx(BatchPlan(choice).value(problem), rel=1e-15)
    return value


@settings(max_examples=200)
@given(problem=problems(max_requests=8))
def test_closing_the_gap_at_once_finds_the_best_of_all_plans(problem: BatchProblem) -> None:
    assert value_with_corner_first(problem) == pytest.approx(best_by_enumeration(problem), rel=1e-9, abs=1e-12)


@pytest.mark.slow
@settings(max_examples=5000)
@given(problem=problems(max_requests=8))
def test_closing_thousands_of_gaps_at_once_finds_the_best_of_all_plans(problem: BatchProblem) -> None:
    assert value_with_corner_first(problem) == pytest.approx(best_by_enumeration(problem), rel=1e-9, abs=1e-12)


@st.composite
def few_sizes(draw: st.DrawFn, most: int) -> BatchProblem:
    """Draw requests of few sizes whose penalties grow with the size: many are alike, and densities all but agree."""
    num = draw(st.integers(1, most))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    kv = np.array(draw(st.lists(st.sampled_from(sizes), min_size=num, max_size=num)), np.int64)
    eighths = np.array(draw(st.lists(st.integers(0, 8), min_size=num, max_size=num)), np.float64) / 8
    pending = eighths if draw(st.booleans()) else eighths * kv
    per_block = draw(st.sampled_from([0.0, 0.01, 1 / 64, 0.3]))
    return BatchProblem(pending, kv, -(-kv // 2), kv * per_block, int(kv.sum() * draw(st.floats(0.05, 0.95))))


@settings(max_examples=100)
@given(problem=few_sizes(7))
def test_requests_of_few_sizes_are_solved_as_by_enumeration(problem: BatchProblem) -> None:
    assert value_with_corner_first(problem) == pytest.approx(best_by_enumeration(problem), rel=1e-9, abs=1e-12)


@settings(max_examples=25)
@given(problem=few_sizes(60))
def test_requests_of_few_sizes_are_solved_as_by_highs(problem: BatchProblem) -> None:
    assert value_with_corner_first(problem) == pytest.approx(solve(problem, method="milp").value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("family", ["early", "overload", "bursty", "agentic"])
def test_at_the_critical_penalty_a_thousand_requests_are_proven(family: str) -> None:
    for share, rho, seed in itertools.product((0.05, 0.5, 0.8), (0.5, 1.0), range(2)):
        recipe = BatchRecipe(family=family, requests=1000, memory_share=share, rho=rho, attention="mha", seed=seed)  # type: ignore[arg-type]
        problem = generate(recipe)
        found = BatchSolver(1000).solve(
            problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s, problem.memory_blocks,
            work_limit=200_000,
        )  # fmt: skip
        assert found.status is Status.OPTIMAL
        assert value_with_corner_first(problem) == pytest.approx(found.value, rel=1e-11)


def least_by_search(added: dict[int, float], removed: dict[int, float], unused: float, left: int) -> float:
    """Return the least loss of using up what is left, by relaxing every edge until nothing changes."""
    reach = 60
    least = {0: 0.0}
    steps = [*((-w, loss) for w, loss in added.items()), *((w, loss) for w, loss in removed.items()), (-1, unused)]
    changed = True
    while changed:
        changed = False
        for node in range(-reach, reach + 1):
            for step, loss in steps:
                length = least.get(node + step, np.inf) + loss
                if length < least.get(node, np.inf) - 1e-12:
                    least[node], changed = length, True
    return least[left]


def edges_of(space: Workspace, added: dict[int, float], removed: dict[int, float]) -> Edges:
    """Write edges into a workspace, dearest first."""
    at = 0
    for edges in (added, removed):
        for w, loss in sorted(edges.items(), key=lambda edge: -edge[1]):
            space.density[at], space.element[at] = loss, w
            at += 1
    return Edges(len(added), len(removed), max(added, default=0), max(removed, default=0))


changes = st.dictionaries(st.integers(1, 12), st.integers(0, 40).map(lambda eighths: eighths / 8), max_size=4)


@settings(max_examples=50)
@given(added=changes, removed=changes, room=st.integers(0, 20))
def test_least_losses_are_shortest_paths_in_whatever_order_blocks_come_and_go(
    added: dict[int, float], removed: dict[int, float], room: int
) -> None:
    edges = edges_of(SPACE, added, removed)
    limits = (edges.most_added, room + edges.most_removed)
    settle(SPACE, edges, limits, 1.0, 1e6, begin(SPACE), SPAN + 1, 10**6)
    assert SPACE.rest[SPAN + room] == pytest.approx(least_by_search(added, removed, 1.0, room), abs=1e-9)


def test_a_budget_that_is_spent_leaves_lower_bounds() -> None:
    added, removed = {3: 0.5, 7: 0.25, 12: 1.0}, {5: 0.125, 4: 0.75}
    edges = edges_of(SPACE, added, removed)
    for budget in range(0, 60, 3):
        _, settled = settle(SPACE, edges, (12, 22), 1.0, 1e6, begin(SPACE), SPAN + 1, budget)
        assert min(SPACE.rest[SPAN + 17], settled) <= least_by_search(added, removed, 1.0, 17) + 1e-9
