"""Replicas of two ranks: the same tokens as with one, caches that move between unequal replicas, and no rank left behind.

The last worker of the shared fleet batches by apt-serve, which keeps both kinds of cache; all pools are scarce.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from factories import TINY, make_plan, make_workload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_processes import ended, ranks_of
from saboteur import Fault, Saboteur
from small_llms import ALL, QWEN3
from strategies import workloads
from undisturbed import SEED, exact_setups, run_on, undisturbed_tokens

from optsched.batching.state import HIDDEN, KV
from optsched.domain.llm import Llm
from optsched.domain.plan import Plan
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.runtime.cache import BlockPool
from optsched.runtime.messages import FromWorker, Incident, Prefilled, Receive, Received, Report, Send, Sent, StartTurn, TurnEnded
from optsched.runtime.model.shard import shard_llm, shard_weights
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.rank_pool import FirstPool, RankPool
from optsched.runtime.ranks import Member

SIZES = make_workload([[(60, 12), (60, 12)]], [0.0])


def unequal(roles: list[str], ranks: list[int], batching: str = "vllm-chunked", kv_blocks: int = 40) -> Plan:
    engine = EngineSpec(max_batched_tokens=128, max_sequences=8)
    plan = make_plan(roles, engine=engine, kv_blocks=kv_blocks, batching=batching, rho_s_per_block=1e-4)
    shared = [replica.replace(tp=tp) for replica, tp in zip(plan.replicas, ranks, strict=True)]
    return plan.replace(replicas=tuple(shared))


ROLES, RANKS = ["prefill", "decode", "decode"], [2, 1, 2]
PLAN = unequal(ROLES, RANKS, kv_blocks=16)
HYBRID = unequal(ROLES, RANKS, "apt-serve", kv_blocks=16)
BLOCK_BYTES = 16 * TINY.kv_bytes_per_token * 2  # float64 in place of float32


@pytest.fixture(scope="module")
def fleet() -> Iterator[Saboteur]:
    with Saboteur([*exact_setups(PLAN, SIZES)[:2], exact_setups(HYBRID, SIZES)[2]]) as started:
        yield started


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(workload=workloads(4, 2, 40, 8, 0.01, with_prefix_blocks=False))
def test_two_ranks_yield_the_tokens_of_one_also_when_caches_move_between_them(fleet: Saboteur, workload: Workload) -> None:
    soon = replace(workload, arrival_s=workload.arrival_s / 1e3)
    log, tokens = run_on(fleet, PLAN, soon)
    assert tokens.tolist() == undisturbed_tokens(soon).tolist()
    assert log.violations(soon) == []
    assert not log.events


def test_caches_that_move_have_the_heads_of_all_ranks(fleet: Saboteur) -> None:
    workload = make_workload([[(33, 4), (3, 3)] for _ in range(4)], [0.0] * 4)
    log, tokens = run_on(fleet, PLAN, workload)
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    assert set(log.transfers.target.tolist()) == {1, 2}
    assert set(log.transfers.bytes.tolist()) == {3 * BLOCK_BYTES}


@dataclass(frozen=True)
class Course:
    """A conversation whose prompt one worker computes and another (or the same) decodes."""

    new: int
    output: int
    hidden: bool
    source: int
    target: int


class Controller:
    """Drives the workers of a fleet by hand: each conversation is one turn, held in the kind of cache that is asked for."""

    def __init__(self, fleet: Saboteur, courses: Sequence[Course]) -> None:
        self.fleet, self.courses = fleet, courses
        self.told: dict[int, Prefilled] = {}
        self.received: dict[int, Received] = {}
        self.sent: set[int] = set()
        self.hidden_tokens = 0
        self._tokens = [[-1] * course.output for course in courses]
        self._ended = 0

    def tokens(self) -> list[int]:
        """Run everything at once and return all output tokens."""
        self.fleet.begin()
        moving = sum(course.source != course.target for course in self.courses)
        for number, course in enumerate(self.courses):
            self.fleet.send(course.source, self._turn(number, stays=course.source == course.target))
        deadline_s = time.monotonic() + 60.0
        while self._ended < len(self.courses) or len(self.sent) < moving:
            assert time.monotonic() < deadline_s
            for _, message in self.fleet.receive(1.0):
                self._hear(message)
        return [token for tokens in self._tokens for token in tokens]

    def _turn(self, number: int, stays: bool) -> StartTurn:
        course = self.courses[number]
        return StartTurn(number, number, 0, 0.0, course.new, course.output, last=True, stays=stays, hidden=course.hidden)

    def _hear(self, message: FromWorker) -> None:
        assert isinstance(message, Report)
        self.hidden_tokens += int(message.steps.hidden_tokens.sum())
        for turn, number, token in zip(message.token_turn, message.token_number, message.token_id, strict=True):
            self._tokens[turn][number] = int(token)
        for news in message.news:
            if isinstance(news, Prefilled):
                self._hand_over(news)
            elif isinstance(news, Received):
                self.received[news.conversation] = news
            elif isinstance(news, Sent):
                self.sent.add(news.conversation)
            else:
                assert isinstance(news, (TurnEnded, Incident))  # it is preempted now and then, as the policy likes
                self._ended += isinstance(news, TurnEnded)

    def _hand_over(self, told: Prefilled) -> None:
        number, course = told.conversation, self.courses[told.conversation]
        assert told.cache == HIDDEN or not course.hidden  # the policy may hold others as hidden cache, too
        self.told[number] = told
        if course.source == course.target:
            return
        prompt = prompt_tokens(SEED, number, 0, course.new, TINY.vocab_size)
        turn = replace(self._turn(number, stays=True), tokens=np.append(prompt, told.token), emitted=1)
        address = self.fleet.address(course.source)
        self.fleet.send(course.target, Receive(number, turn, course.source, address, told.cache, told.context, told.time_s))
        self.fleet.send(course.source, Send(number, number, course.target))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.builds(Course, st.integers(1, 60), st.integers(2, 8), st.booleans(), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=4,
    )
)
def test_both_kinds_of_cache_survive_any_hand_over_between_unequal_replicas(fleet: Saboteur, courses: list[Course]) -> None:
    check(fleet, courses)


@pytest.mark.parametrize("hidden", [False, True], ids=["kv", "hidden"])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (0, 2), (0, 0)], ids=["2-to-1", "1-to-2", "2-to-2", "stays"])
def test_a_cache_of_either_kind_is_read_where_it_was_handed_to(fleet: Saboteur, hidden: bool, source: int, target: int) -> None:
    controller = check(fleet, [Course(50, 6, hidden, source, target), Course(20, 4, not hidden, source, target)])
    assert controller.hidden_tokens > 0 or target == 2  # whose policy may preempt it to hold it as KV cache
    if source != target:
        moved = {number: news.num_bytes for number, news in controller.received.items()}
        assert moved == ({0: 2 * BLOCK_BYTES, 1: 2 * BLOCK_BYTES} if hidden else {0: 4 * BLOCK_BYTES, 1: BLOCK_BYTES})


def check(fleet: Saboteur, courses: list[Course]) -> Controller:
    controller = Controller(fleet, courses)
    workload = make_workload([[(course.new, course.output)] for course in courses], [0.0] * len(courses))
    assert controller.tokens() == undisturbed_tokens(workload).tolist()
    assert set(controller.received) == {number for number, course in enumerate(courses) if course.source != course.target}
    for number, news in controller.received.items():
        told = controller.told[number]
        assert news.num_bytes == -(-told.context // (32 if told.cache == HIDDEN else 16)) * BLOCK_BYTES
    return controller


def test_two_ranks_hold_as_hidden_cache_what_their_pool_could_not_hold_as_kv(fleet: Saboteur) -> None:
    controller = check(fleet, [Course(290, 6, hidden=False, source=2, target=0)])
    assert controller.told[0].cache == HIDDEN
    assert controller.received[0].num_bytes == 10 * BLOCK_BYTES


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two ranks take two GPUs")
def test_two_ranks_on_gpus_yield_the_tokens_of_one_from_both_kinds_of_cache() -> None:
    with Saboteur(exact_setups(PLAN, SIZES, device="cuda")) as started:
        check(started, [Course(50, 6, hidden, source, 1 - source) for hidden in (False, True) for source in (0, 1)])


class Pair:
    """Two ranks of which nobody listens."""

    size = 2


@settings(max_examples=30)
@given(hidden_size=st.sampled_from([32, 40, 48]), hidden=st.booleans(), seed=st.integers(0, 9))
def test_whole_blocks_fall_apart_into_what_each_rank_stores_and_fit_together_again(
    hidden_size: int, hidden: bool, seed: int
) -> None:
    llm, cache = QWEN3.replace(hidden_size=hidden_size), HIDDEN if hidden else KV
    whole = BlockPool(llm, 3, 5, torch.float64, "cpu")
    parts = [RankPool(llm, 3, 5, torch.float64, torch.device("cpu"), Member(), rank, 2) for rank in range(2)]
    first = FirstPool(llm, 3, 5, torch.float64, torch.device("cpu"), Pair())  # type: ignore[arg-type]
    tokens = 3 * (whole.hidden_tokens if hidden else 5)
    block, offset = torch.arange(tokens) // (tokens // 3), torch.arange(tokens) % (tokens // 3)
    generator, blocks = torch.Generator().manual_seed(seed), np.array([2, 0, 1])
    for layer in range(llm.num_layers):
        x = torch.randn(tokens, hidden_size, dtype=torch.float64, generator=generator)
        key_value = torch.randn(tokens, 2, llm.num_kv_heads, llm.head_dim, dtype=torch.float64, generator=generator)
        for pool in (whole, *parts):
            if hidden:
                pool.write_hidden(layer, block, offset, x)
            else:
                heads = slice(None) if pool is whole else slice(parts.index(pool), parts.index(pool) + 1)
                pool.write_kv(layer, block, offset, key_value[:, :, heads])
    content = whole.export_blocks(blocks, cache)
    divided = first._divided(content, cache)
    assert all(torch.equal(each, part.copy_blocks(blocks)) for each, part in zip(divided, parts, strict=True))
    assert torch.equal(first._joined(divided, cache), content)


@pytest.mark.parametrize("victim", ["first rank", "second rank"])
def test_a_replica_that_loses_a_rank_is_lost_whole_and_its_conversations_go_on(victim: str) -> None:
    plan = unequal(["mixed", "mixed"], [2, 1]).replace(placement=make_plan(["mixed"], policy="collocated").placement)
    workload = make_workload([[(30, 200)], [(20, 200)], [(10, 3)]], [0.0, 0.0, 0.0])
    with Saboteur(exact_setups(plan, workload)) as fleet:
        (second,) = ranks_of(fleet.pid(0))
        if victim == "first rank":
            fleet.prepare([Fault("kill", 5, victim=0)])
        else:
            os.kill(second, signal.SIGKILL)
        log, tokens = run_on(fleet, plan, workload)
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    assert [event.replica for event in log.events if event.kind == "worker_died"] == [0]
    assert ended([second], 10.0)


@pytest.mark.parametrize("llm", [llm for llm in ALL if llm.num_kv_heads % 2 == 0], ids=lambda llm: f"{llm.name}-{llm.head_dim}")
def test_the_parts_of_a_layer_sum_to_the_whole(llm: Llm) -> None:
    weights = random_weights(llm, 1, torch.float64, std=0.3)
    whole = Transformer(llm, weights)
    parts = [Transformer(shard_llm(llm, 2), shard_weights(llm, weights, rank, 2)) for rank in range(2)]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, llm.hidden_size, dtype=torch.float64, generator=generator)
    angles = whole.angles(torch.arange(5))
    query, key_value = whole.project(0, x, angles)
    shared = [part.project(0, x, angles) for part in parts]
    assert torch.allclose(torch.cat([each for each, _ in shared], dim=1), query)
    assert torch.allclose(torch.cat([each for _, each in shared], dim=2), key_value)
    attended = torch.randn(5, llm.num_heads * llm.head_dim, dtype=torch.float64, generator=generator)
    out = sum(
        torch.nn.functional.linear(half, part.weights.layers[0].out, part.weights.layers[0].out_bias)
        for half, part in zip(attended.chunk(2, dim=1), parts, strict=True)
    )
    layer = weights.layers[0]
    assert torch.allclose(out, torch.nn.functional.linear(attended, layer.out, layer.out_bias))
