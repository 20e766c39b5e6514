"""A full pipeline: what it yields beside one batch at a time, and experts that are spread whole."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cost.breakdown import breakdown
from optsched.cost.estimate import decode_step, estimate
from optsched.cost.pipeline import steady_pipeline
from optsched.cost.tables import replica_parameters, step_law
from optsched.errors import SpecError

LLM, TIER = catalog.llm("llama-3.1-70b"), catalog.tier("h100-sxm")


def test_one_stage_is_no_pipeline() -> None:
    alone = steady_pipeline(LLM, TIER, tp=4, pp=1, batch=64, context_tokens=1000)
    assert alone.tokens_per_s == pytest.approx(alone.alone_tokens_per_s)
    assert alone.sequences == 64


def test_stages_that_overlap_yield_more_than_stages_that_wait_and_never_more_than_their_number_times() -> None:
    for pp in (2, 4):
        full = steady_pipeline(LLM, TIER, tp=4, pp=pp, batch=256, context_tokens=4000)
        assert full.batches == pp
        assert full.alone_tokens_per_s < full.tokens_per_s <= pp * full.alone_tokens_per_s
        assert full.latency_s >= pp * full.interval_s
        assert full.tokens_per_s == pytest.approx(full.sequences / full.interval_s, rel=0.3)


def test_a_pipeline_is_as_slow_as_its_longest_stage() -> None:
    # 80 layers on 3 stages: 27 on the first two of them.
    full = steady_pipeline(LLM, TIER, tp=4, pp=3, batch=96, context_tokens=2000)
    parameters, shape = replica_parameters(LLM, TIER, tp=4, pp=3)
    rows = {row.name: row.seconds for row in breakdown(parameters, shape, decode_step(LLM, 32, 2000))}
    ends = rows["lm head"] + rows["sampling"]
    layers = sum(rows.values()) - ends - rows["between steps"] - rows["stage hand over"]
    assert full.interval_s == pytest.approx(layers * 27 / 80 + ends + rows["stage hand over"] / 2)


def test_fewer_sequences_than_stages_are_refused() -> None:
    with pytest.raises(SpecError, match="batch 3 leaves some of 4 stages without a sequence; raise --batch, or lower --pp"):
        steady_pipeline(LLM, TIER, tp=4, pp=4, batch=3, context_tokens=100)


def test_whole_experts_exchange_tokens_and_only_routed_llms_have_them() -> None:
    llm = catalog.llm("mixtral-8x7b")
    slices, whole = (
        estimate(llm, TIER, tp=4, prompt_tokens=512, batch=32, context_tokens=500, expert_parallel=each) for each in (False, True)
    )
    assert "expert exchange" in {row.name for row in whole.decode} - {row.name for row in slices.decode}
    assert whole.decode_step_s != slices.decode_step_s
    assert step_law(llm, TIER, tp=4, expert_parallel=True) != step_law(llm, TIER, tp=4)
    with pytest.raises(SpecError, match=r"llama-3\.1-70b has no experts to spread over tp=4 GPUs; leave out --expert-parallel"):
        estimate(LLM, TIER, tp=4, prompt_tokens=1, batch=1, context_tokens=1, expert_parallel=True)
    with pytest.raises(SpecError, match="mixtral-8x7b has 8 experts to spread over tp=16"):
        step_law(llm, TIER, tp=16, expert_parallel=True)
