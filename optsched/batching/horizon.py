"""Batches over the next K iterations at once: what composing each iteration by itself leaves on the table.

Sets
    I: requests; K_i: their output tokens; T: iterations
Parameters
    r_i: iteration of release; m_ik, s_ik: blocks while computing token k, as KV and as hidden cache: a request grows by a
    token per step; d_ik: last iteration in which token k is on time; M: blocks; c: what a step as hidden cache costs per KV
    block, in tokens on time
Variables
    x_ikt (``token_i_k_t``): token k of request i is computed in iteration t; y_ikt (``hidden_i_k_t``): as hidden cache

==========================  ==========================================================  ==========================
name in the solver          constraint                                                  function
==========================  ==========================================================  ==========================
``memory_t``                sum_ik m_ik x_ikt - (m_ik - s_ik) y_ikt <= M                `fit_the_memory`
``once_i_k``                sum_t x_ikt <= 1                                            `compute_tokens_once`
``order_i_k_t``             x_ikt <= sum_{t' < t} x_{i,k-1,t'}                          `keep_the_order`
``hidden_is_chosen_i_k_t``  y_ikt <= x_ikt                                              `hide_only_what_is_chosen`
==========================  ==========================================================  ==========================

Objective: maximise sum_ikt [t <= d_ik] x_ikt - c m_ik y_ikt. As in the problem of one iteration, a request that is left out
keeps its progress and pays nothing for coming back.
"""

from __future__ import annotations

import numpy as np
import pulp
from jaxtyping import Int8

from optsched.batching.batch_solver import BatchSolver
from optsched.batching.horizon_problem import HorizonProblem
from optsched.batching.milp import make_solver
from optsched.batching.problem import SKIP, TAKE_HIDDEN, TAKE_KV
from optsched.batching.solved import SolverName
from optsched.errors import ProblemError

Array = np.ndarray
LATE_S_PER_BLOCK = 1e-6


class HorizonFormulation:
    """The program of the iterations from `start` to before `end`, given the tokens computed so far."""

    def __init__(self, problem: HorizonProblem, start: int, end: int, done: list[int]) -> None:
        self.problem, self.start, self.end, self.done = problem, start, end, done
        self.program = pulp.LpProblem("horizon", pulp.LpMaximize)
        self.steps = [
            (i, k, t)
            for i in range(len(problem.release))
            for k in range(done[i], min(int(problem.output_tokens[i]), done[i] + end - start))
            for t in range(max(start + k - done[i], int(problem.release[i]) + k - done[i]), end)
        ]
        self.token = {
            step: self.program.add_variable(f"token_{'_'.join(map(str, step))}", cat=pulp.LpBinary) for step in self.steps
        }
        self.hidden = {
            step: self.program.add_variable(f"hidden_{'_'.join(map(str, step))}", cat=pulp.LpBinary) for step in self.steps
        }
        self.fit_the_memory()
        self.compute_tokens_once()
        self.keep_the_order()
        self.hide_only_what_is_chosen()
        self.be_on_time()

    def fit_the_memory(self) -> None:
        """Require sum_ik m_ik x_ikt - (m_ik - s_ik) y_ikt <= M."""
        for t in range(self.start, self.end):
            terms = []
            for step in (step for step in self.steps if step[2] == t):
                kv, hidden = self.problem.blocks(step[0], step[1])
                terms += [(self.token[step], kv), (self.hidden[step], hidden - kv)]
            if terms:
                self.program += pulp.LpAffineExpression(terms) <= self.problem.memory_blocks, f"memory_{t}"

    def compute_tokens_once(self) -> None:
        """Require sum_t x_ikt <= 1."""
        for i, k in sorted({step[:2] for step in self.steps}):
            terms = [(self.token[i, k, t], 1) for t in range(self.start, self.end) if (i, k, t) in self.token]
            self.program += pulp.LpAffineExpression(terms) <= 1, f"once_{i}_{k}"

    def keep_the_order(self) -> None:
        """Require x_ikt <= sum_{t' < t} x_{i,k-1,t'}."""
        for i, k, t in self.steps:
            if k > self.done[i]:
                before = [(self.token[i, k - 1, u], 1) for u in range(self.start, t) if (i, k - 1, u) in self.token]
                self.program += self.token[i, k, t] <= pulp.LpAffineExpression(before), f"order_{i}_{k}_{t}"

    def hide_only_what_is_chosen(self) -> None:
        """Require y_ikt <= x_ikt."""
        for step in self.steps:
            self.program += self.hidden[step] <= self.token[step], f"hidden_is_chosen_{'_'.join(map(str, step))}"

    def be_on_time(self) -> None:
        """Maximise the tokens on time less the cost of hidden steps."""
        terms = []
        for i, k, t in self.steps:
            terms.append((self.token[i, k, t], 1.0 if t <= self.problem.due(i, k) else 0.0))
            terms.append((self.hidden[i, k, t], -self.problem.hidden_cost * self.problem.blocks(i, k)[0]))
        self.program += pulp.LpAffineExpression(terms)

    def extract_choice(self) -> Int8[Array, "k n"]:
        """Read the choices of all iterations off the variables; those before `start` are left out."""
        choice = np.full((self.problem.iterations, len(self.problem.release)), SKIP, np.int8)
        for step in self.steps:
            if (self.token[step].varValue or 0.0) > 0.5:
                choice[step[2], step[0]] = TAKE_HIDDEN if (self.hidden[step].varValue or 0.0) > 0.5 else TAKE_KV
        return choice


def solve_horizon(problem: HorizonProblem, solver: SolverName = "highs", time_limit_s: float | None = None) -> Int8[Array, "k n"]:
    """Return the best choice for all iterations, every release and deadline known.

    Raises
    ------
    SolverUnavailableError
        If the solver is not installed.
    """
    formulation = HorizonFormulation(problem, 0, problem.iterations, [0] * len(problem.release))
    if formulation.steps:
        formulation.program.solve(make_solver(solver, time_limit_s))
    return formulation.extract_choice()


def roll_window(problem: HorizonProblem, window: int, solver: SolverName = "highs") -> Int8[Array, "k n"]:
    """Look `window` iterations ahead, execute the first, and look again; only released requests are known.

    Raises
    ------
    ProblemError
        If the window is not positive.
    SolverUnavailableError
        If the solver is not installed.
    """
    if window < 1:
        raise ProblemError(f"window is {window}; it must be 1 iteration at least.")
    choice = np.full((problem.iterations, len(problem.release)), SKIP, np.int8)
    done = [0] * len(problem.release)
    for t in range(problem.iterations):
        formulation = HorizonFormulation(_known(problem, t), t, min(problem.iterations, t + window), done)
        if not formulation.steps:
            continue
        formulation.program.solve(make_solver(solver, None))
        choice[t] = formulation.extract_choice()[t]
        done = [count + int(chosen != SKIP) for count, chosen in zip(done, choice[t].tolist(), strict=True)]
    return choice


def _known(problem: HorizonProblem, now: int) -> HorizonProblem:
    """Hide the requests that are not released yet: they have no tokens to compute."""
    output = np.where(problem.release <= now, problem.output_tokens, 0)
    return HorizonProblem(
        problem.release, problem.context_tokens, output, problem.first_within, problem.next_within,
        problem.memory_blocks, problem.iterations, problem.hidden_ratio, problem.hidden_cost, problem.block_tokens,
    )  # fmt: skip


def compose_each(problem: HorizonProblem) -> Int8[Array, "k n"]:
    """Compose every iteration by itself, to proven optimality, by pending time as Apt-Serve does.

    An iteration counts as one second. A request whose next token is late already is worth next to nothing.
    """
    num = len(problem.release)
    solver, choice = BatchSolver(num), np.full((problem.iterations, num), SKIP, np.int8)
    done, last = [0] * num, problem.release.astype(np.float64)
    for t in range(problem.iterations):
        live = np.array([problem.release[i] <= t and done[i] < problem.output_tokens[i] for i in range(num)], dtype=bool)
        who = np.flatnonzero(live)
        if not len(who):
            continue
        sizes = np.array([problem.blocks(int(i), done[i]) for i in who], np.int64)
        late = np.array([t > problem.due(int(i), done[i]) for i in who])
        pending = np.where(late, LATE_S_PER_BLOCK * sizes[:, 0], t + 1.0 - last[who])
        penalty = problem.hidden_cost * sizes[:, 0]
        found = solver.solve(pending, sizes[:, 0], sizes[:, 1], penalty, problem.memory_blocks)
        choice[t, who] = found.choice
        served = who[found.choice != SKIP]
        last[served] = t + 1.0
        for i in served.tolist():
            done[i] += 1
    return choice
