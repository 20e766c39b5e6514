"""One replica, in this process: whatever the policy does with batches and caches, the tokens are those of the bare llm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llms import ALL, HYBRID, OPT, QWEN3
from strategies import workloads

from optsched.batching.state import HIDDEN, KV, NO_PARAMETERS
from optsched.domain.llm import Llm
from optsched.domain.log import Steps
from optsched.domain.workload import Workload
from optsched.runtime.cache import BlockPool
from optsched.runtime.messages import Incident, Limits, Prefilled, Receive, Report, StartTurn, TurnEnded
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import moved_weights, random_weights
from optsched.runtime.observation import merge_steps
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica
from optsched.runtime.step import forward

SEED = 4
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))]
MODELS = {llm.name + str(llm.hidden_ratio): Transformer(llm, random_weights(llm, 2, torch.float64, std=0.3)) for llm in ALL}


def model_of(llm: Llm) -> Transformer:
    return MODELS[llm.name + str(llm.hidden_ratio)]


def make_replica(
    llm: Llm, kv_blocks: int, policy: str = "vllm-chunked", budget: int = 32, rho: float = 0.0, device: str = "cpu"
) -> Replica:
    limits = Limits(policy, 16, 0, budget, 8, rho, 1.0, 1.0, NO_PARAMETERS)
    model = Transformer(llm, moved_weights(model_of(llm).weights, torch.device(device)))
    pool = BlockPool(llm, kv_blocks, 16, model.dtype, device)
    return Replica(0, model, pool, limits, SEED, Clock(), Recorder())


def first_turn(workload: Workload, turn: int, hidden: bool = False, stays: bool = True) -> StartTurn:
    conversation = int(workload.conversation_of_turn[turn])
    return StartTurn(
        conversation, turn, int(workload.turn_in_conversation[turn]), 0.0, int(workload.new_tokens[turn]),
        int(workload.output_tokens[turn]), turn + 1 == workload.first_turn[conversation + 1], stays, hidden,
    )  # fmt: skip


def handed_over(start: StartTurn, told: Prefilled) -> Receive:
    prompt = prompt_tokens(SEED, start.conversation, 0, start.new_tokens, QWEN3.vocab_size)
    turn = replace(start, tokens=np.append(prompt, told.token), emitted=1, stays=True)
    return Receive(0, turn, 1, ("127.0.0.1", 0), told.cache, told.context, told.time_s)


def serve(replica: Replica, workload: Workload, hidden: list[bool]) -> list[Report]:
    """Run all conversations at once, each turn right after the one before it."""
    for conversation in range(workload.num_conversations):
        replica.start_turn(first_turn(workload, int(workload.first_turn[conversation]), hidden[conversation]))
    reports, bound = [], 40 * int((workload.new_tokens + workload.output_tokens).sum()) + 100
    for _ in range(bound):
        if not replica.has_work:
            break
        replica.step(replica.clock.now(), lambda: 1)
        reports.append(replica.recorder.report())
        for news in reports[-1].news:
            if isinstance(news, TurnEnded) and news.turn + 1 < workload.first_turn[news.conversation + 1]:
                replica.start_turn(first_turn(workload, news.turn + 1))
    assert not replica.has_work
    return reports


def conversations(workload: Workload, reports: list[Report], vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Return each conversation's tokens, and the positions of its outputs among them."""
    turn, number, token = (np.concatenate([getattr(r, f"token_{name}") for r in reports]) for name in ("turn", "number", "id"))
    found = []
    for index, turns in enumerate(workload):
        known: list[int] = []
        outputs: list[int] = []
        for position, t in enumerate(turns):
            known += prompt_tokens(SEED, index, position, int(workload.new_tokens[t]), vocabulary).tolist()
            mine = turn == t
            assert number[mine].tolist() == list(range(int(workload.output_tokens[t])))
            outputs += range(len(known), len(known) + mine.sum())
            known += token[mine].tolist()
        found.append((known, outputs))
    return found


def assert_tokens_are_those_of_the_bare_llm(model: Transformer, workload: Workload, reports: list[Report]) -> None:
    for known, outputs in conversations(workload, reports, model.llm.vocab_size):
        best = forward(model, torch.tensor(known)).argmax(-1)
        assert [known[i] for i in outputs] == best[[i - 1 for i in outputs]].tolist()


def steps_of(reports: list[Report]) -> Steps:
    return merge_steps([report.steps for report in reports])


@settings(max_examples=40)
@given(
    data=st.data(),
    llm=st.sampled_from(ALL),
    workload=workloads(max_conversations=5, max_turns=3, max_new_tokens=60, max_output_tokens=12),
    policy=st.sampled_from(["vllm-chunked", "apt-serve"]),
    spare=st.integers(0, 12),
    budget=st.sampled_from([8, 32, 512]),
)
def test_tokens_are_those_of_the_bare_llm_whatever_the_policy_does(
    data: st.DataObject, llm: Llm, workload: Workload, policy: str, spare: int, budget: int
) -> None:
    kinds = st.booleans() if llm in HYBRID else st.just(False)
    hidden = [data.draw(kinds) for _ in range(workload.num_conversations)]
    kv_blocks = int(-(-workload.peak_tokens.max() // 16)) + spare
    replica = make_replica(
        llm, kv_blocks, policy, max(budget, int(workload.peak_tokens.max())) if policy == "apt-serve" else budget
    )
    reports = serve(replica, workload, hidden)
    assert_tokens_are_those_of_the_bare_llm(replica.model, workload, reports)
    assert replica.slots.tables.num_free == kv_blocks
    steps = steps_of(reports)
    preempted = sum(isinstance(news, Incident) for report in reports for news in report.news)
    due = int(workload.new_tokens.sum()) + workload.num_turns - workload.num_conversations
    assert steps.prefill_tokens.sum() == due or (preempted and steps.prefill_tokens.sum() > due)
    assert steps.decode_sequences.sum() <= (workload.output_tokens - 1).sum()


def test_memory_pressure_preempts_and_the_tokens_stay_the_same() -> None:
    workload = Workload(np.arange(6), np.zeros(6), np.arange(7), np.full(6, 40), np.full(6, 60), np.zeros(6))
    replica = make_replica(QWEN3, 14)
    reports = serve(replica, workload, [False] * 6)
    kinds = [news.kind for report in reports for news in report.news if isinstance(news, Incident)]
    assert kinds.count("preempted") > 0
    assert_tokens_are_those_of_the_bare_llm(replica.model, workload, reports)


def test_hidden_cache_holds_twice_the_tokens_in_the_same_blocks() -> None:
    workload = Workload(np.arange(1), np.zeros(1), np.arange(2), np.array([100]), np.array([20]), np.zeros(1))
    needed = {}
    for cache in (KV, HIDDEN):
        replica = make_replica(OPT, 20, budget=512)
        replica.start_turn(first_turn(workload, 0, cache == HIDDEN))
        replica.step(0.0, lambda: 1)
        needed[cache] = int(replica.slots.requests.blocks.max())
    assert needed == {KV: 7, HIDDEN: 4}


def test_a_step_records_what_it_computed_and_read() -> None:
    workload = Workload(
        np.arange(2), np.zeros(2), np.array([0, 2, 3]), np.array([20, 5, 30]), np.array([3, 1, 4]), np.zeros(3)
    )  # fmt: skip
    replica = make_replica(OPT, 40, budget=512)
    steps = steps_of(serve(replica, workload, [False, True]))
    assert steps.prefill_tokens.tolist() == [50, 0, 0, 6]  # both prompts; later 5 new tokens and the last output token
    assert steps.pairs.tolist() == [20 * 10 + 30 * 15, 0, 0, 6 * (22 + 3)]
    assert steps.prefill_context_tokens.tolist() == [0, 0, 0, 22]
    assert steps.sequences.tolist() == [2, 2, 2, 2]
    assert steps.decode_sequences.tolist() == [0, 2, 2, 1]
    assert steps.kv_tokens.tolist() == [0, 20, 21, 0]
    assert steps.hidden_tokens.tolist() == [0, 30, 31, 32]
    assert np.all(steps.end_s > steps.start_s)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cache", [KV, HIDDEN])
def test_a_conversation_goes_on_elsewhere_after_its_cache_is_handed_over(cache: int, device: str) -> None:
    workload = Workload(np.arange(1), np.zeros(1), np.array([0, 2]), np.array([35, 4]), np.array([5, 3]), np.zeros(2))
    here, there = make_replica(QWEN3, 30, device=device), make_replica(QWEN3, 30, device=device)
    start = first_turn(workload, 0, cache == HIDDEN, stays=False)
    here.start_turn(start)
    while here.has_work:
        here.step(0.0, lambda: 1)
    reports = [here.recorder.report()]
    (told,) = reports[0].news
    assert isinstance(told, Prefilled)
    assert (told.context, told.cache, told.over) == (35, cache, False)
    assert there.expect(handed_over(start, told))
    there.pool.import_blocks(there.blocks_of(0), here.pool.export_blocks(here.blocks_of(0), cache), cache)
    here.forget(0)
    assert here.slots.tables.num_free == 30
    there.land(0)
    while there.has_work:
        there.step(0.0, lambda: 1)
        reports.append(there.recorder.report())
        if any(isinstance(news, TurnEnded) and news.turn == 0 for news in reports[-1].news):
            there.start_turn(first_turn(workload, 1))
    assert steps_of(reports[1:]).prefill_tokens.sum() == 5
    assert_tokens_are_those_of_the_bare_llm(model_of(QWEN3), workload, reports)


def test_a_pool_without_room_makes_a_handed_over_cache_wait() -> None:
    workload = Workload(np.arange(2), np.zeros(2), np.array([0, 1, 2]), np.array([60, 60]), np.array([9, 9]), np.zeros(2))
    replica = make_replica(QWEN3, 6, budget=512)
    replica.start_turn(first_turn(workload, 0))
    replica.step(0.0, lambda: 1)
    coming = handed_over(first_turn(workload, 1), Prefilled(1, 0.0, KV, 60, 7, over=False))
    assert not replica.expect(coming)
    while replica.has_work:
        replica.step(0.0, lambda: 1)
    assert replica.expect(coming)


def test_more_conversations_than_slots_are_given_more_slots() -> None:
    count = 150
    workload = Workload(
        np.arange(count), np.zeros(count), np.arange(count + 1), np.full(count, 3), np.full(count, 2), np.zeros(count)
    )  # fmt: skip
    replica = make_replica(QWEN3, 60)
    reports = serve(replica, workload, [False] * count)
    assert_tokens_are_those_of_the_bare_llm(replica.model, workload, reports)
