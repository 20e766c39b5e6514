"""Apt-Serve's scheduling rules, one by one; D2 to D8 are defects of its released code that this one must not have."""

from __future__ import annotations

import numpy as np
import pytest

from optsched.batching import BatchProblem, solve
from optsched.batching.policies.apt_serve import compose
from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.state import HIDDEN, KV, Counts, Decision, Engine, Requests

ENGINE = Engine(100.0, 40, 40, 16, 0, 2048, 256, 0.5, 1e-4, 1e9, 1e9)
LEFT_OUT, EVICTED = "-", "x"


def state(*rows: tuple[int, int, float, int]) -> Requests:
    """Build requests from (context, new tokens, pending seconds, kind of cache)."""
    requests = Requests.empty(len(rows))
    for slot, (context, new_tokens, pending, cache) in enumerate(rows):
        requests.context[slot], requests.new_tokens[slot] = context, new_tokens
        requests.last_token_s[slot], requests.emitted[slot] = ENGINE.now_s - pending, int(context > 0)
        requests.blocks[slot] = -(-context // (32 if cache == HIDDEN else 16))
        requests.cache[slot] = cache if context else 0
    return requests


def chosen(requests: Requests, counts: Counts, policy: str = "apt-serve", **engine: float) -> str:
    """Write per request what happens: K or H computed so, x evicted, - left out."""
    decision = Decision.empty(len(requests.blocks))
    at = ENGINE._replace(**{"free_blocks": ENGINE.total_blocks - int(requests.blocks.sum()), **engine})
    compiled_policy(policy)(requests, np.arange(len(requests.blocks)), counts, at, decision)
    letters = {0: LEFT_OUT, HIDDEN: "H", KV: "K"}
    return "".join(
        EVICTED if decision.evict[slot] else (letters[decision.cache[slot]] if decision.tokens[slot] else LEFT_OUT)
        for slot in range(len(requests.blocks))
    )


def test_the_iteration_decodes_if_the_running_have_waited_longer_in_sum() -> None:
    assert chosen(state((32, 1, 3.0, KV), (0, 32, 2.0, 0)), Counts(1, 1, 0)) == "K-"
    assert chosen(state((32, 1, 1.0, KV), (0, 32, 2.0, 0)), Counts(1, 1, 0)) == "-K"


def test_the_iteration_decodes_if_nothing_can_be_admitted() -> None:
    requests = state((320, 1, 0.0, KV), (0, 600, 9.0, 0))
    assert chosen(requests, Counts(1, 1, 0), hidden_ratio=0.0) == "K-"


def test_urgency_sums_count_violators() -> None:
    requests = state((32, 1, 3.0, KV), (0, 32, 5.0, 0))
    assert chosen(requests, Counts(1, 1, 0), ttft_slo_s=1.0) == "-K"


def test_prefills_are_selected_by_pending_time_per_block() -> None:
    requests = state((0, 480, 3.0, 0), (0, 240, 2.5, 0), (0, 160, 2.0, 0))
    assert chosen(requests, Counts(0, 3, 0), hidden_ratio=0.0) == "-KK"


def test_violators_come_last_but_are_served_if_memory_is_left() -> None:
    requests = state((0, 400, 50.0, 0), (0, 400, 0.5, 0))
    assert chosen(requests, Counts(0, 2, 0), ttft_slo_s=1.0, hidden_ratio=0.0) == "-K"
    assert chosen(requests, Counts(0, 2, 0), ttft_slo_s=1.0, hidden_ratio=0.0, total_blocks=60, free_blocks=60) == "KK"


def test_hidden_cache_makes_room_where_its_penalty_is_small() -> None:
    requests = state((0, 400, 5.0, 0), (0, 400, 5.0, 0))
    assert "H" in chosen(requests, Counts(0, 2, 0))
    assert chosen(requests, Counts(0, 2, 0), rho_s_per_block=1.0) == "K-"


@pytest.mark.parametrize("ratio", [0.0, 1.0, 2.0])
def test_hidden_cache_is_not_offered_where_it_saves_nothing(ratio: float) -> None:
    requests = state((0, 400, 5.0, 0), (0, 400, 5.0, 0))
    assert chosen(requests, Counts(0, 2, 0), hidden_ratio=ratio) == "K-"


def test_a_decode_preempts_whom_the_knapsack_leaves_out() -> None:
    requests = state((320, 1, 0.1, KV), (304, 1, 0.2, KV))
    assert chosen(requests, Counts(2, 0, 0), hidden_ratio=0.0, free_blocks=0, total_blocks=39) == "xK"


def test_a_decode_evicts_idle_caches_before_it_preempts() -> None:
    requests = state((320, 1, 0.1, KV), (288, 1, 0.2, KV), (32, 0, 0.0, KV))
    assert chosen(requests, Counts(2, 0, 1), hidden_ratio=0.0) == "KKx"


def test_fresh_decodes_without_pending_time_are_not_preempted() -> None:
    requests = state((32, 1, 0.0, KV), (32, 1, 0.0, KV))
    assert chosen(requests, Counts(2, 0, 0)) == "KK"


def test_a_prompt_longer_than_the_token_budget_goes_alone_and_whole() -> None:
    requests = state((0, 300, 9.0, 0), (0, 8, 0.001, 0))
    assert chosen(requests, Counts(0, 2, 0), max_batched_tokens=100, hidden_ratio=0.0) == "K-"


def test_a_waiting_cache_is_kept_in_its_kind() -> None:
    requests = state((64, 8, 9.0, HIDDEN), (64, 8, 9.0, KV))
    assert chosen(requests, Counts(0, 2, 0)) == "HK"


def test_prefills_never_preempt() -> None:
    requests = state((480, 1, 0.5, KV), (0, 160, 5.0, 0), (0, 320, 9.0, 0))
    assert chosen(requests, Counts(1, 2, 0), hidden_ratio=0.0) == "-K-"


def test_d2_a_running_hidden_request_goes_on_while_hidden_is_still_chosen() -> None:
    requests = state((608, 1, 5.0, HIDDEN), (608, 1, 4.0, HIDDEN))
    assert chosen(requests, Counts(2, 0, 0)) == "HH"


def test_d2_a_kind_of_cache_is_switched_by_eviction_and_only_then() -> None:
    requests = state((32, 1, 5.0, HIDDEN), (32, 1, 5.0, KV))
    assert chosen(requests, Counts(2, 0, 0)) == "xK"


def test_a_switch_never_leaves_the_step_empty() -> None:
    assert chosen(state((32, 1, 5.0, HIDDEN)), Counts(1, 0, 0)) == "H"


def test_d3_running_requests_that_exactly_fit_are_not_preempted() -> None:
    requests = state(*[(159, 1, 0.1 + 0.01 * i, KV) for i in range(4)])
    assert chosen(requests, Counts(4, 0, 0), rho_s_per_block=1e-9) == "KKKK"


def test_d4_the_double_check_admits_the_large_request_alone() -> None:
    requests = state((0, 16, 1.0, 0), (0, 640, 9.0, 0))
    assert chosen(requests, Counts(0, 2, 0), hidden_ratio=0.0) == "-K"


def test_d4_the_greedy_double_check_prefers_the_misfit_that_is_worth_more() -> None:
    answer = solve(BatchProblem([1.0, 9.0], [1, 40], [1, 40], [0.0, 0.0], 40), method="greedy")
    assert answer.plan is not None
    assert answer.plan.choice.tolist() == [0, 2]


def test_the_double_check_takes_as_hidden_what_only_fits_so() -> None:
    answer = solve(BatchProblem([1.0, 9.0], [1, 60], [1, 40], [0.0, 1.0], 40), method="greedy")
    assert answer.plan is not None
    assert answer.plan.choice.tolist() == [0, 1]


def test_d5_a_token_budget_that_admits_nothing_loses_no_request() -> None:
    requests = state((0, 300, 9.0, 0), (0, 200, 5.0, 0))
    assert chosen(requests, Counts(0, 2, 0), max_batched_tokens=1, hidden_ratio=0.0) in ("K-", "-K")


def test_d5_the_token_row_counts_an_upgraded_request_once() -> None:
    problem = BatchProblem([4.0, 4.0], [4, 4], [2, 2], [0.1, 0.1], 8, tokens=[60, 60], token_budget=120)
    answer = solve(problem, method="greedy")
    assert answer.plan is not None
    assert answer.plan.choice.tolist() == [2, 2]


def test_d6_a_decode_leaves_no_mark_on_waiting_requests() -> None:
    requests = state((32, 1, 30.0, KV), (0, 400, 5.0, 0), (0, 400, 5.0, 0))
    decision = Decision.empty(3)
    at = ENGINE._replace(free_blocks=38)
    compiled_policy("apt-serve")(requests, np.arange(3), Counts(1, 2, 0), at, decision)
    assert decision.cache.tolist() == [KV, 0, 0]
    assert decision.tokens.tolist() == [1, 0, 0]


def test_d7_an_odd_request_ends_as_kv_where_memory_is_ample() -> None:
    for kv in (1, 3, 5, 33):
        for penalty in (0.4, 0.5, 0.6):
            answer = solve(BatchProblem([1.2], [kv], [-(-kv // 2)], [penalty], 100), method="greedy")
            assert answer.plan is not None
            assert answer.plan.choice.tolist() == [2]
    assert chosen(state((0, 48, 1.2, 0)), Counts(0, 1, 0), rho_s_per_block=0.15) == "K"


def test_d8_the_papers_pressure_counts_violators_and_ours_does_not() -> None:
    rows = [(0, 640, 3.0, 0), (0, 640, 3.0, 0), *[(0, 9999, 50.0, 0)] * 8]
    requests, queue = state(*rows), np.arange(10)
    at = ENGINE._replace(ttft_slo_s=10.0, rho_s_per_block=0.01)
    kinds = []
    for exclude in (True, False):
        decision = Decision.empty(10)
        compose(requests, queue, Counts(0, 10, 0), at, decision, exclude, 0.0)
        kinds.append([int(decision.cache[slot]) if decision.tokens[slot] else 0 for slot in (0, 1)])
    assert kinds == [[HIDDEN, HIDDEN], [KV, 0]]
