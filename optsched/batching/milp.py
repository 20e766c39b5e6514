"""Batch composition as a mixed-integer linear program: the formulation, and the oracle for the other solvers.

Sets
    I: requests; H: those whose hidden cache may be chosen
Parameters
    p_i pending time (s), m_i and s_i blocks as KV and as hidden cache, u_i penalty (s), t_i tokens; M, T, S the limits
Variables
    x_i (``selected_i``): request i is in the batch; y_i (``hidden_i``): it is held as hidden cache

==========================  =======================================================  ==========================
name in the solver          constraint                                               function
==========================  =======================================================  ==========================
``memory``                  sum_i m_i x_i - (m_i - s_i) y_i <= M                     `fit_the_memory`
``hidden_is_selected_i``    y_i <= x_i, i in H                                       `hide_only_what_is_selected`
``token_budget``            sum_i t_i x_i <= T                                       `fit_the_token_budget`
``max_sequences``           sum_i x_i <= S                                           `fit_the_sequences`
==========================  =======================================================  ==========================

Objective: maximise sum_i p_i x_i - u_i y_i, scaled by the largest p_i so that solvers' absolute tolerances mean nothing.

References
----------
Gao et al., "Apt-Serve", arXiv 2504.07494, Definition 1, linearised (y_i <= x_i) and with any sizes.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import pulp

from optsched.batching.problem import SKIP, TAKE_HIDDEN, TAKE_KV, BatchPlan, BatchProblem
from optsched.batching.solved import SolverName
from optsched.errors import SolveError, SolverUnavailableError

OBJECTIVE_SCALE = 1e3
FEASIBILITY_TOLERANCE = 1e-9


class MilpAnswer(NamedTuple):
    """What the program said: a plan or None, whether it is proven, and an upper bound of its own or None."""

    plan: BatchPlan | None
    proven: bool
    bound: float | None


class BatchFormulation:
    """The program of one batch problem.

    Parameters
    ----------
    problem
        What to solve.
    """

    def __init__(self, problem: BatchProblem) -> None:
        self.problem = problem
        self.requests = range(problem.num_requests)
        self.hideable = [i for i in self.requests if problem.pending_s[i] > problem.hidden_penalty_s[i]]
        largest = float(problem.pending_s.max(initial=0.0))
        self.scale = OBJECTIVE_SCALE / largest if largest > 0 else 1.0
        self.program = pulp.LpProblem("batch", pulp.LpMaximize)
        self.selected = {i: self.program.add_variable(f"selected_{i}", cat=pulp.LpBinary) for i in self.requests}
        self.hidden = {i: self.program.add_variable(f"hidden_{i}", cat=pulp.LpBinary) for i in self.hideable}
        self.fit_the_memory()
        self.hide_only_what_is_selected()
        self.fit_the_token_budget()
        self.fit_the_sequences()
        self.serve_the_longest_pending()

    def fit_the_memory(self) -> None:
        """Require sum_i m_i x_i - (m_i - s_i) y_i <= M."""
        m, s = self.problem.kv_blocks.tolist(), self.problem.hidden_blocks.tolist()
        terms = [(self.selected[i], m[i]) for i in self.requests] + [(self.hidden[i], s[i] - m[i]) for i in self.hideable]
        self.program += pulp.LpAffineExpression(terms) <= self.problem.memory_blocks, "memory"

    def hide_only_what_is_selected(self) -> None:
        """Require y_i <= x_i."""
        for i in self.hideable:
            self.program += self.hidden[i] <= self.selected[i], f"hidden_is_selected_{i}"

    def fit_the_token_budget(self) -> None:
        """Require sum_i t_i x_i <= T, if there is a budget."""
        if self.problem.tokens is not None and self.problem.token_budget is not None:
            tokens = self.problem.tokens.tolist()
            terms = [(self.selected[i], tokens[i]) for i in self.requests]
            self.program += pulp.LpAffineExpression(terms) <= self.problem.token_budget, "token_budget"

    def fit_the_sequences(self) -> None:
        """Require sum_i x_i <= S, if sequences are limited."""
        if self.problem.max_sequences is not None:
            terms = [(self.selected[i], 1) for i in self.requests]
            self.program += pulp.LpAffineExpression(terms) <= self.problem.max_sequences, "max_sequences"

    def serve_the_longest_pending(self) -> None:
        """Maximise sum_i p_i x_i - u_i y_i."""
        p, u = self.problem.pending_s * self.scale, self.problem.hidden_penalty_s * self.scale
        terms = [(self.selected[i], float(p[i])) for i in self.requests]
        terms += [(self.hidden[i], -float(u[i])) for i in self.hideable]
        self.program += pulp.LpAffineExpression(terms)

    def extract_plan(self) -> BatchPlan:
        """Read the plan off the variables.

        Raises
        ------
        SolveError
            If, rounded, it breaks the problem.
        """
        choice = np.full(len(self.requests), SKIP, np.int8)
        for i in self.requests:
            if (self.selected[i].varValue or 0.0) > 0.5:
                choice[i] = TAKE_KV
        for i in self.hideable:
            if choice[i] == TAKE_KV and (self.hidden[i].varValue or 0.0) > 0.5:
                choice[i] = TAKE_HIDDEN
        plan = BatchPlan(choice)
        if violations := plan.violations(self.problem):
            raise SolveError(f"The solver's answer breaks the problem: {violations[0]} Choose another --solver.")
        return plan


def make_solver(name: SolverName, time_limit_s: float | None) -> pulp.LpSolver:
    """Return a solver that stops at gap 0 or at the time limit.

    Raises
    ------
    SolverUnavailableError
        If it is not installed.
    """
    if name == "highs":
        solver = pulp.HiGHS(
            msg=False, timeLimit=time_limit_s, gapRel=0.0, gapAbs=0.0, threads=1,
            mip_feasibility_tolerance=FEASIBILITY_TOLERANCE,
        )  # fmt: skip
    else:
        with warnings.catch_warnings():  # PuLP announces that version 4 will not bundle CBC; this project pins < 4
            warnings.simplefilter("ignore", DeprecationWarning)
            solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=0.0, gapAbs=0.0, threads=1)
    if not solver.available():
        package = "highspy" if name == "highs" else "pulp with its bundled CBC"
        raise SolverUnavailableError(f"Solver {name!r} is not installed; it comes with {package}. Install it, or choose another.")
    return solver


def solve_milp(problem: BatchProblem, solver: SolverName = "highs", time_limit_s: float | None = None) -> MilpAnswer:
    """Solve a batch problem as a mixed-integer linear program.

    Parameters
    ----------
    solver
        ``highs`` or ``cbc``.
    time_limit_s
        When to stop without a proof.

    Raises
    ------
    SolverUnavailableError
        If that solver is not installed.
    SolveError
        If its answer breaks the problem.
    """
    engine = make_solver(solver, time_limit_s)
    formulation = BatchFormulation(problem)
    program = formulation.program
    program.solve(engine)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return MilpAnswer(None, False, None)
    proven = program.sol_status == pulp.LpSolutionOptimal
    bound = None
    if solver == "highs" and not proven:
        dual = -float(program.solverModel.getInfo().mip_dual_bound) / formulation.scale
        bound = dual if math.isfinite(dual) else None
    return MilpAnswer(formulation.extract_plan(), proven, bound)
