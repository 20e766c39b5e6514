"""Small fleet problems that several test modules share."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st

from optsched.capacity.problem import FleetPlan, FleetProblem
from optsched.capacity.survival import can_serve, fatal_failures


def melange(whole: bool) -> FleetProblem:
    """Return Melange's shipped example: 30 requests/s in four buckets, A10G at 1.01 and A100-80GB at 3.67 USD/h.

    Source: github.com/tyler-griggs/melange-release, melange/config/example.json (arXiv 2404.14527).
    """
    return FleetProblem(
        classes=("in0-out0", "in0-out1", "in1-out0", "in1-out1"),
        demand_per_s=30 * np.array([0.2, 0.1, 0.5, 0.2]),
        types=("a10g", "a100-80gb"),
        roles=("mixed", "mixed"),
        rate_per_s=np.array([[2.0, 1, 5, 2], [20, 20, 40, 20]]),
        cost=np.array([1.01, 3.67]),
        resources=(),
        uses=np.zeros((2, 0)),
        limits=np.zeros(0),
        whole=whole,
    )


@st.composite
def fleet_problems(draw: st.DrawFn, lossy: bool = False) -> FleetProblem:
    """Draw problems of up to three types and classes that a few replicas solve, or nothing does."""
    types, classes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    number = st.integers(1, 8).map(float)
    roles = tuple(draw(st.sampled_from(["mixed", "mixed", "prefill", "decode"])) for _ in range(types))
    rate = np.array([[draw(st.sampled_from([0.0, 1.0, 2.0, 5.0])) for _ in range(classes)] for _ in range(types)])
    return FleetProblem(
        classes=tuple(f"class-{j}" for j in range(classes)),
        demand_per_s=np.array([draw(st.sampled_from([0.0, 0.5, 1.0, 2.5])) for _ in range(classes)]),
        types=tuple(f"type-{a}" for a in range(types)),
        roles=roles,  # type: ignore[arg-type]
        rate_per_s=rate,
        utilisation=np.array([draw(st.sampled_from([0.5, 0.8, 1.0])) for _ in range(types)]),
        cost=np.array([draw(number) for _ in range(types)]),
        resources=("gpus",),
        uses=np.array([[draw(st.sampled_from([1.0, 2.0]))] for _ in range(types)]),
        limits=np.array([draw(st.sampled_from([3.0, 6.0, 12.0]))]),
        lost=np.ones(types, np.int64) if lossy else None,
    )


def enumerated(problem: FleetProblem) -> tuple[float, tuple[int, ...]] | None:
    """Return the least cost and counts by trying all counts within the limits; None if nothing serves everything."""
    best: tuple[float, tuple[int, ...]] | None = None
    ranges = [
        range(int(min(problem.limits[0] // problem.uses[a, 0], problem.ceiling()[a])) + 1) for a in range(len(problem.types))
    ]
    for counts in product(*ranges):
        array = np.array(counts, np.int64)
        cost = float(problem.cost @ array)
        if (best is not None and cost >= best[0]) or np.any(array @ problem.uses > problem.limits):
            continue
        plan = FleetPlan(array, np.zeros(problem.rate_per_s.shape))
        if can_serve(problem, array) and not fatal_failures(problem, plan):
            best = (cost, counts)
    return best
