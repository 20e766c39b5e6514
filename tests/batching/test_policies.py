"""What every batching policy owes its executor, on random states."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_plan
from hypothesis import given
from hypothesis import strategies as st

from optsched.batching.blocks import blocks_for
from optsched.batching.policies import POLICIES, policy_parameters
from optsched.batching.policies.dispatch import compiled_policy, own_parameters
from optsched.batching.state import HIDDEN, KV, NO_CACHE, NO_LAW, Counts, Decision, Engine, Requests
from optsched.batching.step_time import law_rows
from optsched.errors import UnknownNameError

SPARE_SLOTS = 3
KNOWN_LAW = law_rows(make_plan(["mixed"]).replicas)[0]
# a prompt longer than the budget goes alone, and whole
WHOLE_PROMPTS = ("apt-serve", "apt-serve-decay", "apt-serve-exact", "density")
REORDERING = ("fcfs-demote", "paced", "random", "sjf")
"""Policies that admit in an order of their own, up to the first that does not fit."""
every_policy = pytest.mark.parametrize("name", sorted(POLICIES))


def size(tokens: int, kind: int, engine: Engine) -> int:
    """Blocks of a cache, written again in plain Python."""
    if tokens == 0:
        return 0
    per_block = int(engine.block_tokens / engine.hidden_ratio + 1e-9) if kind == HIDDEN else engine.block_tokens
    return -(-tokens // per_block)


def drawn_parameters(draw: st.DrawFn, name: str) -> dict[str, float]:
    sizes = {key: float(draw(st.integers(1, 64))) for key in POLICIES[name] if key.endswith("_tokens")}
    return sizes | {key: draw(st.sampled_from([0.0, 0.3])) for key in POLICIES[name] if key.endswith("_share")}


@st.composite
def states(draw: st.DrawFn, name: str) -> tuple[Requests, np.ndarray, Counts, Engine]:
    """Draw a replica whose pool holds what its requests say."""
    counts = Counts(draw(st.integers(0, 6)), draw(st.integers(0, 6)), draw(st.integers(0, 4)))
    total = sum(counts)
    hides = name.startswith("apt") and draw(st.booleans())
    engine = Engine(
        now_s=100.0,
        free_blocks=0,
        total_blocks=0,
        block_tokens=draw(st.sampled_from([1, 4, 16])),
        watermark_blocks=draw(st.integers(0, 3)),
        max_batched_tokens=draw(st.integers(1, 64)),
        max_sequences=draw(st.integers(max(1, counts.running), 12)),
        hidden_ratio=draw(st.sampled_from([0.5, 0.25, 0.75])) if hides else draw(st.sampled_from([0.0, 1.5])),
        rho_s_per_block=draw(st.sampled_from([0.0, 1e-4, 1e-2])),
        ttft_slo_s=draw(st.sampled_from([0.5, 5.0, 1e9])),
        tbt_slo_s=draw(st.sampled_from([0.5, 5.0, 1e9])),
        parameters=own_parameters(name, {**policy_parameters(name, {}), **drawn_parameters(draw, name)}),
        law=draw(st.sampled_from([NO_LAW, KNOWN_LAW])),
    )
    requests = Requests.empty(total + SPARE_SLOTS)
    queue = np.array(draw(st.permutations(range(total + SPARE_SLOTS))), np.int64)[:total].copy()
    for position, slot in enumerate(queue):
        running, idle = position < counts.running, position >= counts.running + counts.waiting
        requests.arrival_s[slot] = draw(st.floats(90.0, 100.0))
        requests.last_token_s[slot] = max(requests.arrival_s[slot], draw(st.floats(90.0, 100.0)))
        requests.emitted[slot] = draw(st.integers(0, 2))
        requests.context[slot] = draw(st.integers(1 if running or idle else 0, 40)) if draw(st.booleans()) or running else 0
        requests.new_tokens[slot] = 0 if idle else draw(st.sampled_from([1, 1, 1, 7, 30]))
        kinds = [KV, HIDDEN] if hides else [KV]
        requests.cache[slot] = draw(st.sampled_from(kinds)) if requests.context[slot] else NO_CACHE
        requests.blocks[slot] = size(requests.context[slot], requests.cache[slot], engine)
    held = int(requests.blocks.sum())
    total_blocks = max(1, held + draw(st.integers(0, 12)))
    return requests, queue, counts, engine._replace(free_blocks=total_blocks - held, total_blocks=total_blocks)


def decided(name: str, state: tuple[Requests, np.ndarray, Counts, Engine]) -> tuple[int, Decision]:
    requests, queue, counts, engine = state
    decision = Decision.empty(len(requests.blocks))
    for field in decision:
        field[:] = 99
        field[queue] = 0
    return compiled_policy(name)(requests, queue, counts, engine, decision), decision


@every_policy
@given(data=st.data())
def test_no_step_over_commits_the_pool_or_its_budgets(name: str, data: st.DataObject) -> None:
    requests, queue, _, engine = state = data.draw(states(name))
    scheduled, decision = decided(name, state)
    free, new_tokens, overlong = engine.free_blocks, 0, False
    for slot in queue:
        if decision.evict[slot]:
            assert decision.tokens[slot] == 0
            free += requests.blocks[slot]
        tokens = decision.tokens[slot]
        assert 0 <= tokens <= requests.new_tokens[slot]
        if tokens == 0:
            continue
        kind = decision.cache[slot]
        assert kind in (KV, HIDDEN)
        if requests.context[slot] > 0:
            assert kind == requests.cache[slot]
        free -= max(0, size(requests.context[slot] + tokens, kind, engine) - requests.blocks[slot])
        new_tokens += tokens
        overlong = overlong or (name in WHOLE_PROMPTS and tokens > engine.max_batched_tokens)
    assert free >= 0
    assert scheduled == np.count_nonzero(decision.tokens[queue])
    assert scheduled <= engine.max_sequences
    assert new_tokens <= engine.max_batched_tokens or (overlong and scheduled == 1)


@every_policy
@given(data=st.data())
def test_running_and_admitted_requests_never_exceed_the_sequences(name: str, data: st.DataObject) -> None:
    _, queue, counts, engine = state = data.draw(states(name))
    _, decision = decided(name, state)
    running, waiting = queue[: counts.running], queue[counts.running : counts.running + counts.waiting]
    kept = np.count_nonzero(decision.evict[running] == 0)
    assert kept + np.count_nonzero(decision.tokens[waiting]) <= engine.max_sequences


@every_policy
@given(data=st.data())
def test_something_is_scheduled_whenever_the_pool_could_hold_the_first_request(name: str, data: st.DataObject) -> None:
    """And each running one, and each that may come before it: executors refuse requests that are larger than the pool."""
    requests, queue, counts, engine = state = data.draw(states(name))
    if counts.running + counts.waiting == 0:
        assert decided(name, state)[0] == 0
        return
    known = requests.context + requests.new_tokens
    first = counts.running + counts.waiting if name in REORDERING else max(1, counts.running)
    sizes = [size(known[slot], requests.cache[slot] or KV, engine) for slot in queue[:first]]
    scheduled, _ = decided(name, state)
    if max(sizes) <= engine.total_blocks:
        assert scheduled > 0


@every_policy
@given(data=st.data())
def test_a_policy_is_deterministic_and_touches_only_the_decision_of_its_queue(name: str, data: st.DataObject) -> None:
    requests, queue, _, _ = state = data.draw(states(name))
    before = [field.copy() for field in (*requests, queue)]
    first, second = decided(name, state), decided(name, state)
    assert first[0] == second[0]
    outside = np.setdiff1d(np.arange(len(requests.blocks)), queue)
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one[outside] == 99).all()
    for old, new in zip(before, (*requests, queue), strict=True):
        np.testing.assert_array_equal(old, new)


@every_policy
@given(data=st.data())
def test_hidden_cache_is_never_offered_where_it_is_not_smaller(name: str, data: st.DataObject) -> None:
    state = data.draw(states(name))
    _, queue, _, engine = state
    _, decision = decided(name, state)
    if not 0 < engine.hidden_ratio < 1:
        assert not (decision.cache[queue] == HIDDEN).any()


@every_policy
@given(data=st.data(), num=st.integers(1, 8), hidden_ratio=st.sampled_from([0.0, 0.5]))
def test_every_request_finishes_when_decisions_are_executed(
    name: str, data: st.DataObject, num: int, hidden_ratio: float
) -> None:
    """A tiny executor: no live-lock, and blocks are conserved at every step."""
    prompts = data.draw(st.lists(st.integers(1, 40), min_size=num, max_size=num))
    outputs = data.draw(st.lists(st.integers(1, 12), min_size=num, max_size=num))
    engine = Engine(0.0, 16, 16, 4, 1, 16, data.draw(st.integers(1, 8)), hidden_ratio, 1e-3, 2.0, 2.0)
    requests, decision = Requests.empty(num), Decision.empty(num)
    requests.new_tokens[:] = prompts
    running: list[int] = []
    waiting, done = list(range(num)), [0] * num
    for step in range(3000):
        if not running and not waiting:
            break
        engine = engine._replace(now_s=0.05 * step, free_blocks=engine.total_blocks - int(requests.blocks.sum()))
        queue = np.array(running + waiting, np.int64)
        counts = Counts(len(running), len(waiting), 0)
        decision.tokens[:] = decision.evict[:] = 0
        assert compiled_policy(name)(requests, queue, counts, engine, decision) > 0
        preempted = [slot for slot in running if decision.evict[slot]]
        for slot in queue:
            if decision.evict[slot]:
                requests.new_tokens[slot] += requests.context[slot]
                requests.context[slot] = requests.blocks[slot] = requests.cache[slot] = 0
        for slot in queue:
            if decision.tokens[slot]:
                requests.cache[slot] = decision.cache[slot]
                requests.context[slot] += decision.tokens[slot]
                requests.new_tokens[slot] -= decision.tokens[slot]
                requests.blocks[slot] = size(requests.context[slot], requests.cache[slot], engine)
                if requests.new_tokens[slot] == 0:
                    requests.new_tokens[slot] = 1
                    requests.emitted[slot] += 1
                    requests.last_token_s[slot] = engine.now_s + 0.05
                    done[slot] += 1
        assert requests.blocks.sum() <= engine.total_blocks
        admitted = [slot for slot in waiting if decision.tokens[slot]]
        kept = [slot for slot in running if slot not in preempted] + admitted
        waiting = preempted + [slot for slot in waiting if slot not in admitted]
        running = [slot for slot in kept if done[slot] < outputs[slot]]
        for slot in kept:
            if slot not in running:
                requests.blocks[slot] = requests.context[slot] = 0
    assert done == outputs


@given(tokens=st.integers(1, 5000), block_tokens=st.sampled_from([1, 16, 32]), ratio=st.sampled_from([0.25, 0.5, 0.75, 0.9]))
def test_hidden_blocks_never_exceed_kv_blocks(tokens: int, block_tokens: int, ratio: float) -> None:
    hidden, kv = blocks_for(tokens, HIDDEN, block_tokens, ratio), blocks_for(tokens, KV, block_tokens, ratio)
    assert 1 <= hidden <= kv


def test_an_unknown_policy_names_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown batching policy 'apt-serv'; did you mean: apt-serve"):
        compiled_policy("apt-serv")
