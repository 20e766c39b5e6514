"""Small plans and workloads that several test modules share."""

from __future__ import annotations

import numpy as np

from optsched.domain.llm import Llm
from optsched.domain.plan import (
    Certificate,
    Plan,
    PlanBatching,
    PlanLink,
    PlanLlm,
    PlanPlacement,
    PlanReplica,
    PlanSlo,
    PlanWorkload,
    Standalone,
)
from optsched.domain.results import Metrics, Normalised, Quantiles, Tokens
from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Arrivals, Workload

NOTHING = Quantiles(mean=None, p50=None, p95=None, p99=None)

LAW = StepLaw(
    overhead_s=1e-3, floor_s=4e-3, gemm_tokens=(0, 64, 1024), gemm_s=(2e-3, 3e-3, 40e-3), pair_s=1e-9,
    prefill_context_s=1e-7, kv_s=2e-7, sequence_s=2e-5, hidden_s=3e-6, hidden_step_s=4e-4, step_j=0.1, gemm_j=(0.0, 2.0, 11.0), pair_j=1e-7,
    prefill_context_j=2e-6, kv_j=1e-6, sequence_j=3e-3, hidden_j=1e-4,
    hidden_step_j=0.05, idle_w=50.0,
)  # fmt: skip

TINY = Llm(
    name="tiny", title="Tiny", family="qwen3", num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=32,
    ffn_size=128, vocab_size=256, max_positions=65536, tied_embeddings=True, rope_theta=1e6, dtype="fp32", source="invented",
)  # fmt: skip


def make_workload(conversations: list[list[tuple[int, int]]], arrivals: list[float], gap_s: float = 0.0) -> Workload:
    """Build a workload from (new, output) pairs per turn and conversation."""
    turns = [turn for conversation in conversations for turn in conversation]
    sizes = [len(conversation) for conversation in conversations]
    gaps = [0.0 if index == 0 else gap_s for size in sizes for index in range(size)]
    return Workload(
        conversation_id=np.arange(len(conversations)),
        arrival_s=np.asarray(arrivals, float),
        first_turn=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        new_tokens=np.array([new for new, _ in turns], np.int64),
        output_tokens=np.array([output for _, output in turns], np.int64),
        gap_s=np.array(gaps, float),
    )


def make_plan(
    roles: list[Role],
    *,
    law: StepLaw = LAW,
    kv_blocks: int = 400,
    policy: str = "conserve",
    batching: str = "vllm-chunked",
    engine: EngineSpec | None = None,
    host: str | None = None,
    parameters: dict[str, float] | None = None,
    batching_parameters: dict[str, float] | None = None,
    rho_s_per_block: float = 0.0,
) -> Plan:
    """Build a plan of replicas named r0, r1, ... that are all linked."""
    engine = engine or EngineSpec(max_batched_tokens=256, max_sequences=16)
    replicas = tuple(
        PlanReplica(
            id=f"r{index}", llm="tiny", gpu="a40", power_cap_w=300, role=role, kv_blocks=kv_blocks, coefficients=law,
            origin="assumed", host=host, usd_per_hour=1.0,
        )
        for index, role in enumerate(roles)
    )  # fmt: skip
    links = tuple(
        PlanLink(source=a.id, target=b.id, latency_s=1e-3, bytes_per_s=1e9) for a in replicas for b in replicas if a.id != b.id
    )
    metrics = Metrics(
        clock="true", ttft_s=NOTHING, ttfet_s=NOTHING, tbt_s=NOTHING, tpot_s=NOTHING, e2e_s=NOTHING,
        normalised=Normalised(ttfet=NOTHING, last_turn_tbt=NOTHING, e2e=NOTHING), slo_attainment=1, makespan_s=0,
        tokens=Tokens(prompt=0, output=0), tokens_per_s=0, energy_j=None, tokens_per_joule=None,
        context_tokens_per_joule=None, cost_usd_per_hour=None,
    )  # fmt: skip
    return Plan(
        scenario_sha256="0" * 64,
        llms=(PlanLlm(name="tiny", shape=TINY),),
        slo=PlanSlo(
            standalone=Standalone(gpu="a40", power_cap_w=300, max_batched_tokens=engine.max_batched_tokens, coefficients=law)
        ),
        workload=PlanWorkload(trace="none", sha256="0" * 64, seed=0, arrivals=Arrivals(process="burst")),
        engine=engine,
        replicas=replicas,
        links=links,
        batching=PlanBatching(policy=batching, rho_s_per_block=rho_s_per_block, parameters=batching_parameters or {}),
        placement=PlanPlacement(policy=policy, parameters=parameters or {}),
        predicted=metrics,
        certificate=Certificate(evaluator="none", objective="none", value=0, bound=0, gap=0, status="FEASIBLE", solver="none"),
    )
