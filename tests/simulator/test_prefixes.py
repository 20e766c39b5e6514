"""Prompts that begin alike share cache: nothing is lost, nothing is computed twice, and memory decides what is remembered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.batching.policies import POLICIES
from optsched.domain.plan import Plan
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.simulator.simulate import simulate

UNIT = 32


def sharing(prompts: list[tuple[int, list[int], int]], arrivals: list[float]) -> Workload:
    """Build single-turn conversations from prompt lengths, their units of 32 tokens, and output lengths."""
    workload = make_workload([[(tokens, output)] for tokens, _, output in prompts], arrivals)
    units = [unit for _, own, _ in prompts for unit in own]
    offset = np.concatenate([[0], np.cumsum([len(own) for _, own, _ in prompts])]).astype(np.int64)
    return replace(workload, prefix_offset=offset, prefix_blocks=np.array(units, np.int64), prefix_block_tokens=UNIT)


def plan_of(
    kv_blocks: int = 400, batching: str = "vllm-chunked", caching: bool = True, roles: tuple[str, ...] = ("mixed",)
) -> Plan:
    engine = EngineSpec(max_batched_tokens=256, max_sequences=16, prefix_caching=caching)
    policy, parameters = ("collocated", {"oracle": 0.0, "admission": 0.0}) if roles == ("mixed",) else ("conserve", None)
    return make_plan(
        list(roles), kv_blocks=kv_blocks, batching=batching, policy=policy, parameters=parameters, engine=engine,
        rho_s_per_block=1e-4,
    )  # fmt: skip


@st.composite
def shared_workloads(draw: st.DrawFn) -> Workload:
    """Prompts that continue one of a few earlier ones, as turns of the same chat sent as single requests do."""
    chains: list[list[int]] = [[]]
    prompts, following = [], 0
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.sampled_from(chains))
        kept = start[: draw(st.integers(0, len(start)))]
        own = kept + list(range(following, following + draw(st.integers(0, 3))))
        following += len(own) - len(kept)
        chains.append(own)
        tail = draw(st.integers(0 if own else 1, UNIT - 1))
        prompts.append((len(own) * UNIT + tail, own, draw(st.integers(1, 20))))
    arrivals = np.cumsum([draw(st.floats(0, 0.3)) for _ in prompts]).tolist()
    return sharing(prompts, arrivals)


@pytest.mark.parametrize("batching", sorted(set(POLICIES) - {"density", "apt-serve-decay"}))
@settings(max_examples=15)
@given(workload=shared_workloads(), spare=st.integers(2, 30), apart=st.booleans())
def test_conservation_holds_whoever_shares_and_however_little_memory_there_is(
    batching: str, workload: Workload, spare: int, apart: bool
) -> None:
    blocks = -(-int(workload.peak_tokens.max()) // 16) + spare
    log = simulate(plan_of(blocks, batching, roles=("prefill", "decode") if apart else ("mixed",)), workload)
    assert 0 <= log.reused_tokens <= workload.new_tokens.sum()


@given(workload=shared_workloads())
@settings(max_examples=30)
def test_requests_one_after_the_other_compute_only_what_nobody_computed_before(workload: Workload) -> None:
    workload = workload.with_arrivals(1e3 * np.arange(workload.num_conversations))
    seen: set[int] = set()
    reused = 0
    assert workload.prefix_blocks is not None
    assert workload.prefix_offset is not None
    for turn in range(workload.num_turns):
        own = workload.prefix_blocks[workload.prefix_offset[turn] : workload.prefix_offset[turn + 1]].tolist()
        usable = own[: (int(workload.new_tokens[turn]) - 1) // UNIT]  # the last token is always computed
        while usable and usable[0] in seen:
            reused += UNIT
            seen.add(usable.pop(0))
        seen.update(usable)
    log = simulate(plan_of(), workload)
    assert log.reused_tokens == reused
    assert log.steps.prefill_tokens.sum() == workload.new_tokens.sum() - reused


def test_what_is_cached_counts_as_context_of_what_is_not() -> None:
    log = simulate(plan_of(), sharing([(100, [1, 2, 3], 2), (100, [1, 2, 3], 2)], [0.0, 100.0]))
    prefill = log.steps.prefill_tokens > 0
    assert log.steps.prefill_tokens[prefill].tolist() == [100, 4]
    assert log.steps.prefill_context_tokens[prefill].tolist() == [0, 96]
    assert log.steps.pairs[prefill].tolist() == [100 * 50, 4 * (96 + 2)]


def test_requests_that_share_their_beginning_fit_where_they_would_not_alone() -> None:
    """A prompt has 13 blocks, 12 of them shared: three need 12 + 3 and their growth, not 39."""
    prompts = [(196, [1, 2, 3, 4, 5, 6], 10)] * 4
    workload = sharing(prompts, [0.0, 10.0, 10.0, 10.0])
    together, alone = simulate(plan_of(18), workload), simulate(plan_of(18, caching=False), workload)
    assert together.steps.decode_sequences.max() == 3
    assert alone.steps.decode_sequences.max() == 1
    assert together.preemptions == 0


def test_a_step_that_evicted_only_what_is_shared_is_composed_again() -> None:
    """Three decodes fill five blocks, each to its last token; the last prompt in the queue shares two with one of them."""
    prompts: list[tuple[int, list[int], int]] = [(1, [], 17), (17, [], 17), (33, [1], 1), (1, [], 1), (1, [], 1), (33, [1], 1)]
    log = simulate(plan_of(5, "fastgen"), sharing(prompts, [0.0] * 6))
    assert np.isfinite(log.end_s).all()
    assert log.preemptions > 0


def test_memory_forgets_the_prompt_that_was_used_least_recently() -> None:
    """16 blocks hold two prompts of 7; the third drives out the end of the second, since the first was used again."""
    first, second, third = (97, [1, 2, 3], 1), (97, [4, 5, 6], 1), (97, [7, 8, 9], 1)
    order = [first, second, first, third, first, second]
    log = simulate(plan_of(16), sharing(order, [100.0 * i for i in range(6)]))
    assert log.steps.prefill_tokens.tolist() == [97, 97, 1, 97, 1, 65]


def test_without_prefix_caching_everything_is_computed() -> None:
    log = simulate(plan_of(caching=False), sharing([(100, [1, 2, 3], 2)] * 2, [0.0, 100.0]))
    assert log.reused_tokens == 0
    assert log.steps.prefill_tokens.sum() == 200


def test_prefix_caching_needs_a_workload_that_tells_and_blocks_that_divide_its_units() -> None:
    with pytest.raises(SpecError, match=r"engine.prefix_caching: true: the workload does not say which prompts begin alike"):
        simulate(plan_of(), make_workload([[(10, 2)]], [0.0]))
    workload = sharing([(100, [1, 2, 3], 2)], [0.0])
    plan = plan_of()
    with pytest.raises(SpecError, match=r"engine.block_tokens: 12: prompts share blocks of 32 tokens; give a divisor of 32"):
        simulate(plan.replace(engine=plan.engine.replace(block_tokens=12)), workload)
