"""Hypothesis strategies for the project's records; import as ``from strategies import ...``."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from optsched.domain.collective_law import CollectiveLaw, ExchangeLaw
from optsched.domain.dtypes import Dtype
from optsched.domain.efficiency import (
    DecodeAttentionLaw,
    Efficiency,
    ElementwiseLaw,
    ExpertsLaw,
    GemmLaw,
    PrefillAttentionLaw,
)
from optsched.domain.fit import Fit
from optsched.domain.hardware import Datasheet, FittedStepLaw, Gpu, Link, Price
from optsched.domain.llm import Family, Llm, Mla, Moe
from optsched.domain.overheads import Overheads
from optsched.domain.power_law import PowerLaw
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload

NAMES = st.from_regex(r"[a-z0-9][a-z0-9.\-]{0,11}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=20)
DTYPES: st.SearchStrategy[Dtype] = st.sampled_from(["fp32", "bf16", "fp16", "fp8", "int8", "int4"])


def _reals(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


@st.composite
def step_laws(draw: st.DrawFn) -> StepLaw:
    """Step laws of plausible magnitude: microseconds to a second per step, non-decreasing gemm, energies."""
    knots = draw(st.integers(2, 6))
    widths = draw(st.lists(_reals(1.0, 2048.0), min_size=knots, max_size=knots))
    rises = draw(st.lists(_reals(0.0, 0.1), min_size=knots, max_size=knots))
    busy = draw(st.lists(_reals(0.0, 1.0), max_size=3))
    return StepLaw(
        overhead_s=draw(_reals(0.0, 0.02)),
        floor_s=draw(_reals(0.0, 0.05)),
        gemm_tokens=tuple(float(value) for value in np.cumsum(widths)),
        gemm_s=tuple(float(value) for value in np.cumsum(rises)),
        pair_s=draw(_reals(0.0, 1e-8)),
        prefill_context_s=draw(_reals(0.0, 1e-6)),
        kv_s=draw(_reals(0.0, 1e-6)),
        sequence_s=draw(_reals(0.0, 1e-4)),
        hidden_s=draw(_reals(0.0, 1e-5)),
        hidden_step_s=draw(_reals(0.0, 1e-2)),
        busy_slowdown=tuple(float(value) for value in 1.0 + np.cumsum([0.0, *busy])),
        step_j=draw(_reals(0.0, 1.0)),
        gemm_j=tuple(float(value) for value in np.cumsum(draw(st.lists(_reals(0.0, 10.0), min_size=knots, max_size=knots)))),
        pair_j=draw(_reals(0.0, 1e-6)),
        prefill_context_j=draw(_reals(0.0, 1e-4)),
        kv_j=draw(_reals(0.0, 1e-4)),
        sequence_j=draw(_reals(0.0, 0.1)),
        hidden_j=draw(_reals(0.0, 1e-3)),
        hidden_step_j=draw(_reals(0.0, 1.0)),
        idle_w=draw(_reals(0.0, 200.0)),
    )


@st.composite
def workloads(
    draw: st.DrawFn,
    max_conversations: int = 6,
    max_turns: int = 4,
    max_new_tokens: int = 300,
    max_output_tokens: int = 60,
    max_gap_s: float = 5.0,
    min_conversations: int = 1,
    with_prefix_blocks: bool | None = None,
) -> Workload:
    """Workloads of 1..`max_conversations` conversations of 1..`max_turns` turns.

    Later turns may append nothing; gaps of first turns are 0. `with_prefix_blocks`: whether shared-prefix blocks are
    present (None: sometimes).
    """
    count = draw(st.integers(min_conversations, max_conversations))
    sizes = draw(st.lists(st.integers(1, max_turns), min_size=count, max_size=count))
    turns = sum(sizes)
    first_turn = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    waits = draw(st.lists(_reals(0.0, 10.0), min_size=count, max_size=count))
    new = np.array(draw(st.lists(st.integers(0, max_new_tokens), min_size=turns, max_size=turns)), dtype=np.int64)
    output = np.array(draw(st.lists(st.integers(1, max_output_tokens), min_size=turns, max_size=turns)), dtype=np.int64)
    gap = np.array(draw(st.lists(_reals(0.0, max_gap_s), min_size=turns, max_size=turns)), dtype=float)
    new[first_turn[:-1]] = np.maximum(new[first_turn[:-1]], 1)
    gap[first_turn[:-1]] = 0.0
    prefix_offset = prefix_blocks = None
    if draw(st.booleans()) if with_prefix_blocks is None else with_prefix_blocks:
        lengths = draw(st.lists(st.integers(0, 3), min_size=turns, max_size=turns))
        prefix_offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        total = int(prefix_offset[-1])
        prefix_blocks = np.array(draw(st.lists(st.integers(0, 9), min_size=total, max_size=total)), dtype=np.int64)
    return Workload(
        conversation_id=np.arange(count, dtype=np.int64),
        arrival_s=np.cumsum(np.array(waits, dtype=float)),
        first_turn=first_turn,
        new_tokens=new,
        output_tokens=output,
        gap_s=gap,
        prefix_offset=prefix_offset,
        prefix_blocks=prefix_blocks,
    )


@st.composite
def llms(draw: st.DrawFn, families: tuple[Family, ...] = ("opt", "llama", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3")) -> Llm:
    """Small llm shapes of the given families; an even head width, and d a multiple of the heads."""
    family = draw(st.sampled_from(families))
    num_kv_heads = draw(st.sampled_from([1, 2, 4]))
    num_heads = num_kv_heads if family == "opt" else num_kv_heads * draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    # Only the Qwen families choose the head width apart from d / heads.
    free_width = family in ("qwen3", "qwen3_moe")
    hidden_size = num_heads * (draw(st.sampled_from([8, 16, 32])) if free_width else head_dim)
    num_layers = draw(st.integers(1, 4))
    ffn_size = draw(st.sampled_from([32, 64, 96]))
    moe = mla = None
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        num_experts = draw(st.sampled_from([2, 4, 8]))
        deepseek = family == "deepseek_v3"
        moe = Moe(
            num_experts=num_experts,
            experts_per_token=draw(st.integers(1, num_experts)),
            expert_size=ffn_size if family == "mixtral" else draw(st.sampled_from([16, 48])),
            num_shared=draw(st.integers(0, 2)) if deepseek else 0,
            num_dense_layers=draw(st.integers(0, num_layers)) if deepseek else 0,
            router_bias=deepseek,
        )
        if deepseek:
            mla = Mla(q_rank=24, kv_rank=draw(st.sampled_from([16, 32])), rope_dim=8, nope_dim=head_dim, v_dim=head_dim)
            head_dim += mla.rope_dim
    return Llm(
        name=draw(NAMES),
        title=draw(TEXTS),
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads if mla else num_kv_heads,
        head_dim=head_dim,
        ffn_size=ffn_size,
        vocab_size=draw(st.sampled_from([64, 100, 512])),
        max_positions=draw(st.sampled_from([128, 4096])),
        tied_embeddings=draw(st.booleans()),
        rope_theta=None if family == "opt" else draw(st.sampled_from([1e4, 5e5, 1e6])),
        norm_epsilon=draw(st.sampled_from([1e-5, 1e-6])),
        moe=moe,
        mla=mla,
        dtype=draw(DTYPES),
        kv_dtype=draw(st.none() | DTYPES),
        source=draw(TEXTS),
    )


SHARES = _reals(0.05, 1.0)
HALVES = _reals(1.0, 512.0)


@st.composite
def fits(draw: st.DrawFn) -> Fit:
    """Fits of up to three parameters."""
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    rows = [tuple(draw(_reals(-1.0, 1.0)) for _ in names) for _ in names]
    errors = st.none() | _reals(0.0, 1.0)
    return Fit(
        source=draw(TEXTS),
        date="2026-11-21",
        num_rows=draw(st.integers(0, 10**6)),
        rows_left_out=draw(st.dictionaries(TEXTS, st.integers(1, 100), max_size=2)),
        train_mape=draw(_reals(0.0, 1.0)),
        heldout_shapes_mape=draw(errors),
        heldout_llms_mape=draw(errors),
        parameters=tuple(names),
        covariance=tuple(rows),
    )


def gemm_laws() -> st.SearchStrategy[GemmLaw]:
    """Laws of matrix products, with and without a fit."""
    return st.builds(
        GemmLaw, compute=SHARES, memory=SHARES, half_rows=HALVES, half_inner=HALVES, half_outer=HALVES,
        launch_s=_reals(0.0, 1e-4), fit=st.none() | fits(),
    )  # fmt: skip


def overheads() -> st.SearchStrategy[Overheads]:
    """Overheads below a few milliseconds."""
    return st.builds(
        Overheads,
        source=TEXTS,
        layer_overhead_s=_reals(0.0, 1e-3),
        step_overhead_s=_reals(0.0, 2e-2),
        sequence_overhead_s=_reals(0.0, 1e-3),
    )


@st.composite
def gpus(draw: st.DrawFn) -> Gpu:
    """Gpus of plausible magnitude."""
    power_w = draw(_reals(50.0, 1200.0))
    return Gpu(
        name=draw(NAMES),
        title=draw(TEXTS),
        datasheet=Datasheet(
            memory_bytes=draw(_reals(1e9, 3e11)),
            memory_bytes_per_s=draw(_reals(1e10, 1e13)),
            flops_per_s=draw(st.dictionaries(DTYPES, _reals(1e10, 1e16), min_size=1, max_size=4)),
            power_w=power_w,
            interconnect=draw(NAMES),
            gpus_per_node=draw(st.integers(1, 16)),
            sources={"default": draw(TEXTS)},
        ),
        price=Price(usd_per_hour=draw(_reals(0.0, 20.0)), source=draw(TEXTS)),
        efficiency=Efficiency(
            origin=draw(st.sampled_from(["assumed", "fitted"])),
            source=draw(TEXTS),
            sibling=draw(st.none() | NAMES),
            gemm=draw(st.dictionaries(DTYPES, gemm_laws(), max_size=2)),
            prefill_attention=draw(
                st.dictionaries(
                    DTYPES,
                    st.builds(PrefillAttentionLaw, compute=SHARES, memory=SHARES, tile_rows=HALVES, row_keys=HALVES),
                    max_size=2,
                )
            ),
            decode_attention=draw(
                st.dictionaries(DTYPES, st.builds(DecodeAttentionLaw, compute=SHARES, memory=SHARES), max_size=2)
            ),
            experts=draw(
                st.dictionaries(DTYPES, st.builds(ExpertsLaw, compute=SHARES, memory=SHARES, half_rows=HALVES), max_size=2)
            ),
            elementwise=draw(st.builds(ElementwiseLaw, memory=SHARES)),
            collectives=draw(st.none() | st.builds(CollectiveLaw, send=st.builds(ExchangeLaw, bandwidth=SHARES))),
            layer_overhead_s=draw(_reals(0.0, 1e-3)),
            step_overhead_s=draw(_reals(0.0, 2e-2)),
            idle_w=power_w * draw(_reals(0.05, 0.9)),
            engines=draw(st.dictionaries(NAMES, overheads(), max_size=2)),
            power=draw(st.builds(PowerLaw, active=SHARES, clock_linear=SHARES, clock_exponent=_reals(1.0, 12.0))),
            reserve_bytes=draw(_reals(1e8, 5e9)),
        ),
        memory_utilisation=draw(_reals(0.1, 1.0)),
        shared_host=draw(st.booleans()),
        step_laws=tuple(
            FittedStepLaw(llm=draw(NAMES), origin=draw(TEXTS), law=draw(step_laws())) for _ in range(draw(st.integers(0, 1)))
        ),
    )


@st.composite
def links(draw: st.DrawFn) -> Link:
    """Links between megabytes and terabytes per second."""
    return Link(
        name=draw(NAMES),
        title=draw(TEXTS),
        bytes_per_s=draw(_reals(1e6, 1e12)),
        latency_s=draw(_reals(0.0, 0.1)),
        joules_per_byte=draw(_reals(0.0, 1e-9)),
        source=draw(TEXTS),
    )
