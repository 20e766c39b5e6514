"""vLLM's scheduling rules, one by one."""

from __future__ import annotations

import numpy as np

from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.state import KV, Counts, Decision, Engine, Requests

ENGINE = Engine(10.0, 10, 10, 16, 0, 512, 8, 0.0, 0.0, 1.0, 1.0)


def state(*rows: tuple[int, int]) -> Requests:
    """Build requests from (context, new tokens)."""
    requests = Requests.empty(len(rows))
    for slot, (context, new_tokens) in enumerate(rows):
        requests.context[slot], requests.new_tokens[slot] = context, new_tokens
        requests.blocks[slot], requests.cache[slot] = -(-context // 16), KV if context else 0
    return requests


def tokens_and_evictions(requests: Requests, counts: Counts, **engine: int) -> tuple[list[int], list[int]]:
    decision = Decision.empty(len(requests.blocks))
    free = ENGINE.total_blocks - int(requests.blocks.sum())
    at = ENGINE._replace(**{"free_blocks": free, **engine})
    compiled_policy("vllm-chunked")(requests, np.arange(len(requests.blocks)), counts, at, decision)
    return decision.tokens.tolist(), decision.evict.tolist()


def test_decodes_come_first_and_a_prompt_gets_what_is_left_of_the_budget() -> None:
    assert tokens_and_evictions(state((20, 1), (0, 50)), Counts(1, 1, 0), max_batched_tokens=21) == ([1, 20], [0, 0])


def test_an_unfinished_prompt_goes_on_before_anyone_is_admitted() -> None:
    requests = state((16, 40), (0, 5))
    assert tokens_and_evictions(requests, Counts(1, 1, 0), max_batched_tokens=30) == ([30, 0], [0, 0])


def test_requests_are_admitted_first_come_first_served_up_to_the_first_that_does_not_fit() -> None:
    requests = state((16, 1), (0, 160), (0, 5))
    assert tokens_and_evictions(requests, Counts(1, 2, 0)) == ([1, 0, 0], [0, 0, 0])


def test_a_decode_without_a_free_block_preempts_the_request_admitted_last() -> None:
    requests = state((64, 1), (48, 1), (48, 1))
    assert tokens_and_evictions(requests, Counts(3, 0, 0)) == ([1, 1, 0], [0, 0, 1])


def test_a_step_that_preempted_admits_nothing() -> None:
    requests = state((64, 1), (48, 1), (48, 1), (0, 1))
    assert tokens_and_evictions(requests, Counts(3, 1, 0)) == ([1, 1, 0, 0], [0, 0, 1, 0])


def test_idle_caches_go_before_anyone_is_preempted_the_least_recently_used_first() -> None:
    requests = state((64, 1), (48, 0), (48, 0))
    assert tokens_and_evictions(requests, Counts(1, 0, 2)) == ([1, 0, 0], [0, 1, 0])


def test_an_admission_may_evict_idle_caches() -> None:
    requests = state((0, 64), (96, 0), (32, 0))
    assert tokens_and_evictions(requests, Counts(0, 1, 2)) == ([64, 0, 0], [0, 1, 0])


def test_an_admission_that_would_not_fit_anyway_evicts_nothing() -> None:
    requests = state((96, 1), (0, 64), (32, 0))
    assert tokens_and_evictions(requests, Counts(1, 1, 1)) == ([1, 0, 0], [0, 0, 0])


def test_a_cached_context_counts_only_by_its_growth() -> None:
    requests = state((64, 1), (90, 7))
    assert tokens_and_evictions(requests, Counts(0, 2, 0), total_blocks=11, free_blocks=1) == ([1, 0], [0, 0])
    assert tokens_and_evictions(requests, Counts(0, 2, 0), total_blocks=12, free_blocks=2) == ([1, 7], [0, 0])


def test_the_watermark_holds_back_admissions_but_not_the_only_request() -> None:
    assert tokens_and_evictions(state((16, 1), (0, 96)), Counts(1, 1, 0), watermark_blocks=3) == ([1, 0], [0, 0])
    assert tokens_and_evictions(state((0, 160)), Counts(0, 1, 0), watermark_blocks=3) == ([160], [0])


def test_no_more_than_the_sequences_run() -> None:
    requests = state((8, 1), (8, 1), (0, 4))
    assert tokens_and_evictions(requests, Counts(2, 1, 0), max_sequences=2) == ([1, 1, 0], [0, 0, 0])


def test_waiting_caches_go_from_the_back_where_nothing_else_frees_the_pool() -> None:
    requests = state((0, 64), (48, 1), (112, 1))
    assert tokens_and_evictions(requests, Counts(0, 3, 0)) == ([64, 1, 0], [0, 0, 1])
