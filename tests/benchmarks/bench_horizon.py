"""What composing every iteration by itself leaves on the table; ``python tests/benchmarks/bench_horizon.py`` prints the table."""

from __future__ import annotations

from statistics import mean
from time import perf_counter

import numpy as np

from optsched.batching.horizon import compose_each, roll_window, solve_horizon
from optsched.batching.horizon_problem import HorizonProblem, replay

NUM, ITERATIONS, SEEDS = 6, 6, 10


def horizon(seed: int, tightness: float, spread: int) -> HorizonProblem:
    """Draw requests released over `spread` iterations, with memory for a share of their contexts."""
    draw = np.random.default_rng(seed)
    context = np.clip(draw.lognormal(4.0, 0.8, NUM), 8, 800).astype(np.int64)
    return HorizonProblem(
        release=draw.integers(0, spread, NUM),
        context_tokens=context,
        output_tokens=draw.integers(2, ITERATIONS + 1, NUM),
        first_within=draw.integers(1, 5, NUM),
        next_within=draw.integers(1, 3, NUM),
        memory_blocks=max(1, int(sum(-(-context // 16)) * tightness)),
        iterations=ITERATIONS,
        hidden_cost=0.02,
    )


def main() -> None:
    """Measure all settings."""
    print("| memory | released over | each by itself | window 1 | window 2 | window 4 | all known (MILP) | MILP s (max) |")
    print("|---|---|---|---|---|---|---|---|")
    for tightness in (0.2, 0.4, 0.7):
        for spread in (1, 4):
            shares: list[list[float]] = [[], [], [], []]
            values, times = [], []
            for seed in range(SEEDS):
                problem = horizon(seed, tightness, spread)
                started = perf_counter()
                best = replay(problem, solve_horizon(problem))
                times.append(perf_counter() - started)
                values.append(best)
                choices = (compose_each(problem), *(roll_window(problem, window) for window in (1, 2, 4)))
                for share, choice in zip(shares, choices, strict=True):
                    share.append(replay(problem, choice) / best if best > 0 else 1.0)
            cells = " | ".join(f"{mean(share):.1%}, worst {min(share):.0%}" for share in shares)
            print(f"| {tightness:.0%} | {spread} | {cells} | {mean(values):.2f} tokens | {max(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
