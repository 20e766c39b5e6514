"""Small placement problems, drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo, Standalone
from optsched.domain.scenario import LatencyTarget, Role
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem


def law(scale: float = 1.0, **changes: object) -> StepLaw:
    """Return a step law of untidy figures, so that steps of different replicas rarely end at the same moment."""
    return StepLaw(
        overhead_s=0.0021357 * scale, floor_s=0.0107913 * scale, gemm_tokens=(1, 64, 256),
        gemm_s=(0.0031 * scale, 0.0053 * scale, 0.0209 * scale), pair_s=1.013e-6 * scale, kv_s=4.07e-6 * scale,
        prefill_context_s=1.07e-5 * scale, sequence_s=1.03e-4 * scale, hidden_s=0.0, step_j=0.8 / scale,
        gemm_j=(0.11, 2.3, 3.7), pair_j=1e-5, prefill_context_j=3e-5, kv_j=2e-5 / scale, sequence_j=7e-3, idle_w=40.0,
    ).replace(**changes)  # fmt: skip


def replica(index: int, role: Role, *, step_law: StepLaw | None = None, kv_blocks: int = 60, usd: float = 1.0) -> PlanReplica:
    return PlanReplica(
        id=f"r{index}", llm="tiny", gpu="a40", power_cap_w=300, role=role, kv_blocks=kv_blocks,
        coefficients=step_law or law(), origin="assumed", usd_per_hour=usd,
    )  # fmt: skip


def all_links(replicas: tuple[PlanReplica, ...], latency_s: float = 0.0053719, bytes_per_s: float = 1e6) -> tuple[PlanLink, ...]:
    return tuple(
        PlanLink(source=a.id, target=b.id, latency_s=latency_s, bytes_per_s=bytes_per_s, joules_per_byte=1e-6)
        for a, b in itertools.permutations(replicas, 2)
    )


def workload(turns: list[list[tuple[int, int, float]]], arrival_s: list[float]) -> Workload:
    """Build conversations from (new tokens, output tokens, gap) triples."""
    flat = [turn for conversation in turns for turn in conversation]
    return Workload(
        conversation_id=np.arange(len(turns)),
        arrival_s=np.array(arrival_s, float),
        first_turn=np.concatenate([[0], np.cumsum([len(conversation) for conversation in turns])]).astype(np.int64),
        new_tokens=np.array([turn[0] for turn in flat], np.int64),
        output_tokens=np.array([turn[1] for turn in flat], np.int64),
        gap_s=np.array([0.0 if i in _firsts(turns) else turn[2] for i, turn in enumerate(flat)], float),
    )


def _firsts(turns: list[list[tuple[int, int, float]]]) -> set[int]:
    return set(np.concatenate([[0], np.cumsum([len(c) for c in turns])]).tolist())


def slo(factor: float = 1.3) -> PlanSlo:
    return PlanSlo(
        ttft=LatencyTarget(seconds=0.3), tbt=LatencyTarget(standalone_factor=factor),
        ttfet=LatencyTarget(standalone_factor=factor),
        e2e=LatencyTarget(standalone_factor=factor),
        standalone=Standalone(gpu="a40", power_cap_w=300, max_batched_tokens=64, coefficients=law()),
    )  # fmt: skip


TURN = st.tuples(st.integers(1, 150), st.integers(1, 12), st.sampled_from([0.0, 0.0, 0.05, 0.4]))
FLEETS: list[list[Role]] = [["prefill", "decode"], ["mixed"], ["mixed", "mixed"], ["prefill", "decode", "decode"],
    ["prefill", "prefill", "decode"], ["prefill", "mixed"], ["mixed", "decode"]]  # fmt: skip


@st.composite
def problems(
    draw: st.DrawFn, most: int = 4, objectives: tuple[Goal, ...] = ("ttfet", "energy", "slo_misses", "cost")
) -> PlacementProblem:
    count = draw(st.integers(1, most))
    turns = [draw(st.lists(TURN, min_size=1, max_size=3)) for _ in range(count)]
    gaps = draw(st.lists(st.sampled_from([0.0, 0.01, 0.08, 0.5]), min_size=count, max_size=count))
    changes = ({}, {}, {"floor_s": 0.0}, {"gemm_tokens": (8, 32, 96)}, {"step_j": 0.0, "kv_s": 6e-5}, {"gemm_j": (0, 0.02, 4)})
    laws = st.sampled_from([law(1.6), *(law(**change) for change in changes)])
    replicas = tuple(
        replica(i, role, step_law=draw(laws), kv_blocks=draw(st.sampled_from([31, 45, 200])))
        for i, role in enumerate(draw(st.sampled_from(FLEETS)))
    )
    return PlacementProblem(
        workload(turns, np.cumsum(gaps).tolist()), replicas, all_links(replicas), kv_bytes_per_token=100.0,
        objective=draw(st.sampled_from(objectives)), max_batched_tokens=draw(st.sampled_from([32, 64, 200])), slo=slo(),
    )  # fmt: skip


def placements(problem: PlacementProblem) -> Iterator[PlacementPlan]:
    """Yield every placement that the problem allows."""
    options = [[(p, d) for p, d in problem.pairs if problem.fits(p, d)[c]] for c in range(problem.workload.num_conversations)]
    for choice in itertools.product(*options):
        yield PlacementPlan.of([p for p, _ in choice], [d for _, d in choice])
