"""The ``batch`` command: solve one batch-composition problem."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optsched.batching import BatchProblem, Solved
from optsched.cli.checks import positive
from optsched.cli.output import emit_json, print_line, print_table, progress
from optsched.report.numbers import seconds

_OPTIONS = ("skip", "hidden", "KV")


def batch(
    problem: Path,
    /,
    *,
    method: Literal["greedy", "greedy-fill", "exact", "milp", "lp"] = "exact",
    solver: Literal["highs", "cbc"] = "highs",
    mode: Literal["right", "paper"] = "right",
    time_limit_s: float | None = None,
    json: bool = False,
) -> None:
    """Solve one batch-composition problem with a proven bound.

    Parameters
    ----------
    problem
        A file of schema optsched/batch-problem.
    method
        exact: proven optimum; greedy: Apt-Serve's Algorithm 1; greedy-fill: goes on after the first misfit; milp: by an
        integer programming solver; lp: the bound only.
    solver
        Which solver milp uses, and exact where the token or sequence limit binds.
    mode
        When the greedy methods offer hidden cache: right for any sizes, or as the paper published it.
    time_limit_s
        When exact and milp stop without a proof, in seconds.
    json
        Print one JSON object instead of tables.
    """
    from optsched.batching import solve
    from optsched.batching.problem_file import read_problem
    from optsched.batching.warm_up import warm_up_solvers

    data, limit_s = read_problem(problem), positive("--time-limit-s", time_limit_s)
    with progress("compiling, the first time only"):
        warm_up_solvers()
    answer = solve(data, method=method, solver=solver, time_limit_s=limit_s, mode=mode)
    if json:
        emit_json(
            {
                "status": answer.status.value,
                "value": answer.value,
                "bound": answer.bound,
                "gap": answer.gap,
                "choice": None if answer.plan is None else answer.plan.choice.tolist(),
                "runtime_s": answer.runtime_s,
                "limit": answer.limit,
                "solver": answer.solver,
            }
        )
    else:
        _print(data, answer)


def _print(problem: BatchProblem, answer: Solved) -> None:
    """Print the answer, and what every request does, for people."""
    if answer.plan is not None:
        sizes = (problem.hidden_blocks * 0, problem.hidden_blocks, problem.kv_blocks)
        rows = [
            (index, _OPTIONS[chosen], sizes[chosen][index], f"{problem.pending_s[index]:.6g} s")
            for index, chosen in enumerate(answer.plan.choice.tolist())
        ]
        print_table("Requests", ("request", "choice", "blocks", "pending"), rows)
        taken = sum(int(blocks) for _, _, blocks, _ in rows)
        print_line(
            f"{sum(1 for row in rows if row[1] != 'skip')} of {len(rows)} requests, {taken} of {problem.memory_blocks} blocks"
        )
    else:
        print_line("The linear relaxation bounds every plan; its fractional solution is none.")
    gap = "-" if answer.gap is None else f"{answer.gap:.3g}"
    value = "-" if answer.value is None else f"{answer.value:.9g} s"
    stopped = f", stopped by the {answer.limit} limit" if answer.limit else ""
    print_line(f"{answer.status.value}{stopped}: value {value}, bound {answer.bound:.9g} s, gap {gap}")
    print_line(f"{answer.solver}, {seconds(answer.runtime_s)}")
