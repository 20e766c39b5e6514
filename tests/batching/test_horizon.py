"""Looking several iterations ahead: the program, the rolling window, and composing each iteration by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching.horizon import compose_each, roll_window, solve_horizon
from optsched.batching.horizon_problem import HorizonProblem, replay
from optsched.errors import ProblemError


def horizon(seed: int, num: int = 5, iterations: int = 5) -> HorizonProblem:
    draw = np.random.default_rng(seed)
    context = draw.integers(1, 120, num)
    return HorizonProblem(
        release=draw.integers(0, 3, num),
        context_tokens=context,
        output_tokens=draw.integers(1, iterations, num),
        first_within=draw.integers(1, 4, num),
        next_within=draw.integers(1, 3, num),
        memory_blocks=max(1, int(context.sum() // 16 * 0.5)),
        iterations=iterations,
        hidden_cost=0.02,
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_nobody_beats_the_program_that_knows_everything(seed: int) -> None:
    problem = horizon(seed)
    best = replay(problem, solve_horizon(problem))
    for choice in (compose_each(problem), roll_window(problem, 1), roll_window(problem, 3)):
        assert replay(problem, choice) <= best + 1e-6


def test_a_window_over_the_whole_horizon_with_everyone_released_is_the_optimum() -> None:
    for seed in range(4):
        drawn = horizon(seed)
        problem = HorizonProblem(
            drawn.release * 0, drawn.context_tokens, drawn.output_tokens, drawn.first_within, drawn.next_within,
            drawn.memory_blocks, drawn.iterations, hidden_cost=0.02,
        )  # fmt: skip
        assert replay(problem, roll_window(problem, 5)) == pytest.approx(replay(problem, solve_horizon(problem)), abs=1e-6)


def test_cbc_and_highs_agree() -> None:
    for seed in range(3):
        problem = horizon(seed)
        values = [replay(problem, solve_horizon(problem, solver)) for solver in ("highs", "cbc")]  # type: ignore[arg-type]
        assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_request_grows_by_a_token_per_step() -> None:
    one = np.ones(1, np.int64)
    problem = HorizonProblem(0 * one, 15 * one, 3 * one, 9 * one, 9 * one, memory_blocks=1, iterations=3, hidden_ratio=1.0)
    assert [problem.blocks(0, done)[0] for done in range(3)] == [1, 2, 2]
    assert replay(problem, solve_horizon(problem)) == replay(problem, compose_each(problem)) == 1.0


def test_the_referee_refuses_what_does_not_fit() -> None:
    one = np.ones(1, np.int64)
    problem = HorizonProblem(one, 15 * one, one, one, one, memory_blocks=0, iterations=2)
    with pytest.raises(ProblemError, match=r"Request 0 is served in iteration 0, outside of its life"):
        replay(problem, np.array([[2], [0]], np.int8))
    with pytest.raises(ProblemError, match=r"Iteration 1 takes 1 blocks; there are 0"):
        replay(problem, np.array([[0], [2]], np.int8))


def test_wrong_horizons_are_refused() -> None:
    one, two = np.ones(1, np.int64), np.ones(2, np.int64)
    with pytest.raises(ProblemError, match=r"there must be one per request"):
        HorizonProblem(one, two, one, one, one, 1, 1)
    with pytest.raises(ProblemError, match=r"A horizon has a negative number, -1"):
        HorizonProblem(-one, one, one, one, one, 1, 1)
    with pytest.raises(ProblemError, match=r"window is 0; it must be 1 iteration at least"):
        roll_window(HorizonProblem(one, one, one, one, one, 1, 1), 0)


def test_nothing_to_serve_is_served_by_all() -> None:
    none = np.zeros(0, np.int64)
    problem = HorizonProblem(none, none, none, none, none, 5, 3)
    assert [replay(problem, choice) for choice in (solve_horizon(problem), roll_window(problem, 2), compose_each(problem))] == [
        0.0
    ] * 3
