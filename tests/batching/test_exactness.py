"""The memory row's optima against HiGHS with its tolerances drawn tight: equal to 1e-9, not to HiGHS's own 1e-6."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from optsched.batching import BatchPlan, BatchProblem, Status, solve
from optsched.batching.generators import BatchRecipe, generate

TIGHT = {
    "mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "mip_feasibility_tolerance": 1e-10,
    "primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10, "threads": 1, "output_flag": False,
}  # fmt: skip


def best_by_highs(problem: BatchProblem) -> BatchPlan:
    """Return HiGHS's proven best plan; its variables are rounded, and the referee checks the plan they make."""
    highspy = pytest.importorskip("highspy")
    num = problem.num_requests
    program, matrix = highspy.HighsLp(), highspy.HighsLp().a_matrix_
    program.num_col_, program.num_row_ = 2 * num, 1 + num
    program.col_cost_ = -np.concatenate([problem.pending_s - problem.hidden_penalty_s, problem.pending_s])
    program.col_lower_ = np.zeros(2 * num)
    program.col_upper_ = np.concatenate([problem.hidden_blocks < problem.kv_blocks, np.ones(num, bool)]).astype(float)
    program.row_lower_ = np.full(1 + num, -highspy.kHighsInf)
    program.row_upper_ = np.concatenate([[problem.memory_blocks], np.ones(num)])
    program.integrality_ = [highspy.HighsVarType.kInteger] * (2 * num)
    matrix.format_, matrix.start_ = highspy.MatrixFormat.kColwise, np.arange(0, 4 * num + 1, 2)
    matrix.num_col_, matrix.num_row_ = 2 * num, 1 + num
    each = np.arange(1, num + 1)
    sizes = np.concatenate([problem.hidden_blocks, problem.kv_blocks])
    matrix.index_ = np.column_stack([np.zeros(2 * num), np.concatenate([each, each])]).ravel().astype(np.int32)
    matrix.value_ = np.column_stack([sizes, np.ones(2 * num)]).ravel().astype(float)
    program.a_matrix_ = matrix
    highs = highspy.Highs()
    for name, value in TIGHT.items():
        assert highs.setOptionValue(name, value) == highspy.HighsStatus.kOk
    highs.passModel(program)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    taken = np.rint(np.array(highs.getSolution().col_value)).astype(np.int8)
    return BatchPlan(taken[:num] + 2 * taken[num:])


@pytest.mark.parametrize("family", ["early", "overload", "bursty", "agentic"])
def test_every_family_is_solved_to_the_last_billionth(family: str) -> None:
    for share, rho, attention in itertools.product((0.05, 0.5), (0.0, 0.5, 1.0), ("mha", "gqa")):
        recipe = BatchRecipe(family=family, requests=60, memory_share=share, rho=rho, attention=attention, seed=11)  # type: ignore[arg-type]
        problem = generate(recipe)
        ours, theirs = solve(problem), best_by_highs(problem)
        assert ours.status is Status.OPTIMAL
        assert theirs.violations(problem) == []
        assert ours.value == pytest.approx(theirs.value(problem), rel=1e-9)
