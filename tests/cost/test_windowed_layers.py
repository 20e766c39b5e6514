"""Llms whose layers alternate between a sliding window and the whole context: attention, caches, step law and grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.estimate import decode_step, prefill_chunks
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.grid import StepAxes, evaluate_grid
from optsched.cost.memory import held_share, kv_token_budget, memory
from optsched.cost.precision import double_precision
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.tables import replica_parameters, step_law, step_law_error
from optsched.cost.transformer import communications, compute_operations
from optsched.domain.llm import Llm

LLM, TIER = catalog.llm("llama-3.1-8b"), catalog.tier("h100-sxm")
WINDOW, SLIDING = 1024, 24  # three of four layers
MIXED = LLM.replace(sliding_window=WINDOW, num_sliding_layers=SLIDING)
EVERY = LLM.replace(sliding_window=WINDOW)


def seconds(llm: Llm, steps: StepFeatures) -> float:
    return float(evaluate_steps(*replica_parameters(llm, TIER), steps.rows()).seconds.sum())


@double_precision
def work(llm: Llm, steps: StepFeatures) -> tuple[float, float]:
    """Return FLOPs and bytes of one step."""
    operations = compute_operations(LlmShape.of(llm), steps)
    return sum(float(each.flops) for each in operations.values()), sum(float(each.bytes) for each in operations.values())


@given(
    context=st.integers(1, 20_000), batch=st.integers(1, 64), hidden=st.sampled_from([0.0, 0.4, 1.0]), new=st.integers(1, 4096)
)
def test_each_kind_of_layer_does_the_work_that_it_does_where_all_are_alike(
    context: int, batch: int, hidden: float, new: int
) -> None:
    share = SLIDING / LLM.num_layers
    rebuilt = int(hidden * batch * min(context, WINDOW))
    for steps in (
        lambda llm: decode_step(llm, batch, context, rebuilt),
        lambda llm: prefill_chunks(llm, new, 4096, context).row(0),
    ):
        mixed, full, windowed = (np.array(work(llm, steps(llm))) for llm in (MIXED, LLM, EVERY))
        np.testing.assert_allclose(mixed, share * windowed + (1 - share) * full, rtol=1e-9)


def test_a_window_in_some_layers_saves_part_of_what_one_in_all_saves() -> None:
    for steps in (lambda llm: decode_step(llm, 64, 30_000), lambda llm: prefill_chunks(llm, 30_000, 2048)):
        full, mixed, windowed = (seconds(llm, steps(llm)) for llm in (LLM, MIXED, EVERY))
        assert windowed < mixed < full
        assert mixed == pytest.approx(SLIDING / 32 * windowed + (1 - SLIDING / 32) * full, rel=0.02)


def test_contexts_within_the_window_cost_what_they_cost_without_one() -> None:
    assert seconds(MIXED, prefill_chunks(MIXED, 1000, 2048)) == pytest.approx(
        seconds(LLM, prefill_chunks(LLM, 1000, 2048)), rel=1e-9
    )
    one, other = seconds(MIXED, decode_step(MIXED, 8, 1000)), seconds(LLM, decode_step(LLM, 8, 1000))
    assert one == pytest.approx(other, rel=0.02)  # the windowed kernel reads the tiles at the window's ends whole


@double_precision
def test_hidden_cache_is_gathered_for_each_kind_of_layer() -> None:
    steps = decode_step(MIXED, 4, 10_000, 40_000)
    sent = communications(LlmShape.of(MIXED, Layout(2)), steps, np.asarray(8.0))  # type: ignore[arg-type]
    full, within = (float(sent[name].bytes) for name in ("hidden_gather", "windowed_hidden_gather"))
    assert within / full == pytest.approx((SLIDING * 4 * WINDOW) / ((32 - SLIDING) * 40_000))


def test_layers_with_a_window_keep_the_window_and_a_block() -> None:
    assert held_share(LLM, 10_000) == 1
    assert held_share(EVERY, 10_000) == pytest.approx((WINDOW + 16) / 10_000)
    assert held_share(MIXED, 10_000) == pytest.approx(8 / 32 + SLIDING / 32 * (WINDOW + 16) / 10_000)
    assert held_share(MIXED, 500) == 1
    safe, at_length = kv_token_budget(MIXED, TIER), memory(MIXED, TIER, context_tokens=10_000).kv_token_budget
    assert safe == kv_token_budget(LLM, TIER)
    assert at_length == pytest.approx(safe / held_share(MIXED, 10_000), rel=1e-3)


def test_the_step_law_takes_whole_contexts_and_stays_within_its_error() -> None:
    found = step_law_error(step_law(MIXED, TIER), MIXED, TIER)
    assert found["prefill"].mape <= 0.03
    # The law is linear in a batch's cached tokens, of which these layers see no more than the window (docs/accuracy.md).
    assert found["decode"].mape <= 0.10
    assert found["mixed"].mape <= 0.05


def test_a_grid_knows_both_kinds_of_layer() -> None:
    axes = StepAxes(np.array([1, 32]), np.array([500, 30_000]), np.array([0]))
    found = evaluate_grid(MIXED, [TIER], [1], axes).seconds[0, 0, :, :, 0]
    for i, batch in enumerate(axes.batch.tolist()):
        for j, context in enumerate(axes.context.tolist()):
            assert found[i, j] == pytest.approx(seconds(MIXED, decode_step(MIXED, batch, context)), rel=1e-9)
