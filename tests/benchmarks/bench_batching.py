"""Batch composition: every method on every family, beside CBC, HiGHS, SciPy's milp, a plain-Python greedy and a bare partition.

``make bench`` runs it as tests on small sizes; ``python tests/benchmarks/bench_batching.py`` measures all of it and writes
the tables of docs/benchmarks.md and docs/batching-times.svg. All figures of one run are taken side by side.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from optsched.batching import BatchProblem, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.batching.generators import BatchRecipe, generate
from optsched.batching.solved import Composition
from optsched.batching.solver import greedy_plan
from optsched.batching.warm_up import warm_up_solvers

FAMILIES = ("early", "overload", "bursty", "agentic")
SHARES, RHOS, ATTENTIONS = (0.05, 0.2, 0.5, 0.8), (0.0, 0.5, 1.0, 3.0), ("mha", "gqa")
SOLVER = BatchSolver(100_000)
DOCS = Path(__file__).resolve().parents[2] / "docs"


def recipes(num: int, rows: bool, seeds: int) -> list[BatchRecipe]:
    return [
        BatchRecipe(family=family, requests=num, memory_share=share, rho=rho, attention=attention, rows=rows, seed=seed)  # type: ignore[arg-type]
        for family, share, rho, attention, seed in itertools.product(FAMILIES, SHARES, RHOS, ATTENTIONS, range(seeds))
    ]


def engine_call(problem: BatchProblem) -> Callable[[], Composition]:
    """Bind a problem's arrays as an engine would hold them."""
    p, u = problem.pending_s.copy(), problem.hidden_penalty_s.copy()
    m, s = problem.kv_blocks.copy(), problem.hidden_blocks.copy()
    tokens = None if problem.tokens is None else problem.tokens.copy()
    choice = np.empty(len(p), np.int8)
    return lambda: SOLVER.solve(
        p, m, s, u, problem.memory_blocks,
        tokens=tokens, token_budget=problem.token_budget, max_sequences=problem.max_sequences, choice=choice,
    )  # fmt: skip


def timed(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the median time of a call in seconds."""
    times = []
    for _ in range(repeats):
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return median(times)


def plain_greedy(p: list[float], m: list[int], s: list[int], u: list[float], memory: int) -> tuple[float, dict[int, int]]:
    """Render Algorithm 1 of the paper's appendix (arXiv 2504.07494), line by line, on lists."""
    entries = []
    for i in range(len(p)):
        if p[i] >= 2 * u[i] and s[i] < m[i]:
            entries.append(((p[i] - u[i]) / s[i], i, s[i]))
            entries.append((u[i] / (m[i] - s[i]), i, m[i] - s[i]))
        else:
            entries.append((p[i] / m[i], i, m[i]))
    entries.sort(key=lambda entry: -entry[0])
    value, used, chosen = 0.0, 0, {}
    alone, alone_value = -1, 0.0
    for density, i, blocks in entries:
        if used + blocks > memory:
            alone, alone_value = i, density * blocks
            break
        used += blocks
        value += density * blocks
        chosen[i] = 2 if i in chosen or blocks == m[i] else 1
    return (value, chosen) if value >= alone_value else (alone_value, {alone: 2})


def scipy_milp(problem: BatchProblem, limit_s: float) -> float:
    """Solve the formulation with SciPy's milp, matrix built outside PuLP."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, hstack

    n = problem.num_requests
    fits = np.concatenate([problem.hidden_blocks < problem.kv_blocks, np.ones(n, bool)]).astype(float)
    rows = [np.concatenate([problem.hidden_blocks, problem.kv_blocks])]
    limits = [problem.memory_blocks]
    if problem.tokens is not None:
        rows += [np.concatenate([problem.tokens, problem.tokens]), np.ones(2 * n)]
        limits += [problem.token_budget, problem.max_sequences]
    answer = milp(
        -np.concatenate([problem.pending_s - problem.hidden_penalty_s, problem.pending_s]),
        integrality=np.ones(2 * n),
        bounds=Bounds(0, fits),
        constraints=[
            LinearConstraint(csr_array(np.array(rows, float)), -np.inf, limits),
            LinearConstraint(hstack([eye_array(n), eye_array(n)]), -np.inf, 1),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": limit_s},
    )
    return float("nan") if answer.x is None else -float(answer.fun)


@pytest.mark.parametrize("num", [1_000, 10_000, 100_000])
def test_exact_one_row(benchmark: BenchmarkFixture, num: int) -> None:
    warm_up_solvers()
    call = engine_call(generate(BatchRecipe(family="early", requests=num, memory_share=0.2, rho=1.0, attention="mha", seed=num)))
    call()
    benchmark(call)


def test_exact_three_rows(benchmark: BenchmarkFixture) -> None:
    warm_up_solvers()
    call = engine_call(
        generate(BatchRecipe(family="early", requests=1000, memory_share=0.2, rho=0.5, attention="mha", rows=True, seed=1))
    )
    call()
    benchmark(call)


def exact_table(seeds: int) -> list[str]:
    """Measure the exact solver over all families, memories, penalties and kinds of attention."""
    lines = [
        "| n | rows | instances | median ms | p95 ms | max ms | max / median | proven | worst gap | ties left open |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for num, rows, count in ((100, False, 1), (1_000, False, 3), (10_000, False, 1), (100_000, False, 1), (1_000, True, 3)):
        for family in (*FAMILIES, "all"):
            if family == "all" or num <= 1000:
                lines.append(_exact_line(num, rows, family, max(1, seeds * count // 3)))
    return lines


def _exact_line(num: int, rows: bool, family: str, seeds: int) -> str:
    times, gaps, proven, ties = [], [], 0, 0
    chosen = [recipe for recipe in recipes(num, rows, seeds) if family in ("all", recipe.family)]
    for recipe in chosen:
        call = engine_call(generate(recipe))
        found = call()
        times.append(timed(call) * 1e3)
        proven += found.status.value == "OPTIMAL"
        ties += found.limit == "ties"
        gaps.append((found.bound - found.value) / found.value if found.value else 0.0)
    middle = median(times)
    return (
        f"| {num:,} | {'memory, tokens, sequences' if rows else 'memory'}, {family} | {len(chosen)} | {middle:.3f} | "
        f"{np.quantile(times, 0.95):.3f} | {max(times):.2f} | {max(times) / middle:.0f} | {proven / len(chosen):.1%} | {max(gaps):.1e} | {ties} |"
    )


def side_by_side(num: int, rows: bool, limit_s: float) -> dict[str, tuple[float, float, float]]:
    """Time every method on the families at half the critical penalty and 20 % memory: median and max, worst gap to ours."""
    methods: dict[str, list[tuple[float, float]]] = {}
    for family in FAMILIES:
        problem = generate(
            BatchRecipe(family=family, requests=num, memory_share=0.2, rho=0.5, attention="mha", rows=rows, seed=num)  # type: ignore[arg-type]
        )
        best = engine_call(problem)().value
        for name, (time_s, value) in _every_method(problem, limit_s).items():
            methods.setdefault(name, []).append((time_s, (best - value) / best))
    return {
        name: (median(time for time, _ in got), max(time for time, _ in got), max((gap for _, gap in got), key=abs))
        for name, got in methods.items()
    }


def _every_method(problem: BatchProblem, limit_s: float) -> dict[str, tuple[float, float]]:
    """Time every method on one problem; return seconds and value. Solvers run once, the others seven times."""
    lists = [
        values.tolist() for values in (problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s)
    ]
    density, half = problem.pending_s / problem.kv_blocks, problem.num_requests // 2
    engine = engine_call(problem)
    got = {
        "exact (BatchSolver)": (timed(engine, 7), engine().value),
        "exact (solve)": (timed(lambda: solve(problem), 7), solve(problem).value or 0.0),
        "lp (bound only)": (timed(lambda: solve(problem, method="lp"), 7), solve(problem, method="lp").bound),
        "bare argpartition": (timed(lambda: np.argpartition(density, half), 7), float("nan")),
    }
    for name, fill in (("greedy", False), ("greedy-fill", True)):
        call = partial(greedy_plan, problem, fill=fill)
        got[name] = timed(call, 7), call().value(problem)
    if not problem.has_rows:  # published for the memory alone
        plain = partial(plain_greedy, *lists, problem.memory_blocks)
        got["plain-Python greedy"] = timed(plain, 7), plain()[0]
    solvers: dict[str, Callable[[], float | None]] = {
        "PuLP + CBC": lambda: solve(problem, method="milp", solver="cbc", time_limit_s=limit_s).value,
        "PuLP + HiGHS": lambda: solve(problem, method="milp", solver="highs", time_limit_s=limit_s).value,
        "SciPy milp": lambda: scipy_milp(problem, limit_s),
    }
    for name, solver in solvers.items() if limit_s > 0 else ():
        started = perf_counter()
        value = solver()
        got[name] = perf_counter() - started, float("nan") if value is None else value
    return got


def comparison(sizes: dict[int, float], rows: bool) -> tuple[list[str], dict[str, list[tuple[int, float]]]]:
    """Return a table of all methods at several sizes, and the medians for the plot."""
    lines = [
        "| n | method | median | max | slower than exact (median) | value below ours at worst |",
        "|---|---|---|---|---|---|",
    ]
    curves: dict[str, list[tuple[int, float]]] = {}
    for num, limit_s in sizes.items():
        got = side_by_side(num, rows, limit_s)
        ours = got["exact (BatchSolver)"][0]
        for name, (middle, most, gap) in got.items():
            lines.append(f"| {num:,} | {name} | {middle * 1e3:.3f} ms | {most * 1e3:.3f} ms | {middle / ours:.3g} | {gap:.1e} |")
            curves.setdefault(name, []).append((num, middle))
    return lines, curves


def plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw time against n, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "optsched"
    figure, axes = plt.subplots(figsize=(7.5, 5))
    for (name, points), marker in zip(curves.items(), "osv^<>DPX*", strict=True):
        axes.loglog([num for num, _ in points], [time_s for _, time_s in points], marker=marker, label=name, linewidth=1)
    axes.set(xlabel="requests", ylabel="median time, s", title="Batch composition, memory row, four families, 20 % memory")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    """Measure, print the tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--solver-limit-s", type=float, default=20.0)
    options = parser.parse_args()
    started = perf_counter()
    warm_up_solvers()
    print(
        f"warm-up {perf_counter() - started:.1f} s; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    limit_s = options.solver_limit_s
    table, curves = comparison({10: limit_s, 100: limit_s, 1_000: limit_s, 10_000: limit_s, 100_000: 0.0}, rows=False)
    print("\n".join(table), "\n")
    table, _ = comparison({1_000: limit_s}, rows=True)
    print("\n".join(table), "\n")
    print("\n".join(exact_table(options.seeds)))
    plot(curves, DOCS / "batching-times.svg")


if __name__ == "__main__":
    main()
