"""The rules of the serving systems that Apt-Serve is compared with, and of its control experiments, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from optsched.batching.policies import policy_parameters
from optsched.batching.policies.dispatch import compiled_policy, own_parameters
from optsched.batching.policies.random import drawn
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.errors import SpecError

ENGINE = Engine(10.0, 10, 10, 16, 0, 512, 8, 0.0, 0.0, 1.0, 1.0)


def state(*rows: tuple[int, int]) -> Requests:
    """Build requests from (context, new tokens); all of them have just been heard of."""
    requests = Requests.empty(len(rows))
    requests.identity[:] = np.arange(len(rows))
    requests.arrival_s[:] = requests.last_token_s[:] = ENGINE.now_s
    for slot, (context, new_tokens) in enumerate(rows):
        requests.context[slot], requests.new_tokens[slot] = context, new_tokens
        requests.blocks[slot], requests.cache[slot] = -(-context // 16), KV if context else 0
    return requests


def step(
    policy: str, requests: Requests, counts: Counts, given: dict[str, float] | None = None, **engine: int
) -> tuple[list[int], list[int]]:
    decision = Decision.empty(len(requests.blocks))
    free = engine.get("total_blocks", ENGINE.total_blocks) - int(requests.blocks.sum())
    own = own_parameters(policy, policy_parameters(policy, given or {}))
    at = ENGINE._replace(**{"free_blocks": free, "parameters": own, **engine})  # type: ignore[arg-type]
    compiled_policy(policy)(requests, np.arange(len(requests.blocks)), counts, at, decision)
    return decision.tokens.tolist(), decision.evict.tolist()


def test_vllm_prefills_whole_prompts_and_no_decode_beside_them() -> None:
    assert step("vllm", state((16, 1), (0, 20), (0, 30)), Counts(1, 2, 0)) == ([0, 20, 30], [0, 0, 0])


def test_vllm_decodes_when_no_prompt_fits() -> None:
    assert step("vllm", state((16, 1), (0, 200), (0, 3)), Counts(1, 2, 0)) == ([1, 0, 0], [0, 0, 0])


def test_vllm_keeps_the_watermark_free_unless_nothing_runs() -> None:
    waiting = (0, 48)
    assert step("vllm", state((96, 1), waiting), Counts(1, 1, 0), watermark_blocks=2) == ([1, 0], [0, 0])
    assert step("vllm", state(waiting), Counts(0, 1, 0), watermark_blocks=9) == ([48], [0])


def test_vllm_preempts_the_request_admitted_last() -> None:
    assert step("vllm", state((64, 1), (48, 1), (48, 1)), Counts(3, 0, 0)) == ([1, 1, 0], [0, 0, 1])


def test_sarathi_fills_the_chunk_with_prompts_behind_every_decode() -> None:
    requests = state((20, 1), (16, 30), (0, 40))
    assert step("sarathi", requests, Counts(2, 1, 0), {"chunk_tokens": 16}) == ([1, 15, 0], [0, 0, 0])
    assert step("sarathi", requests, Counts(2, 1, 0), {"chunk_tokens": 50}) == ([1, 30, 19], [0, 0, 0])


def test_sarathi_admits_a_prompt_only_if_all_of_it_fits() -> None:
    assert step("sarathi", state((96, 1), (0, 64)), Counts(1, 1, 0), {"chunk_tokens": 32}) == ([1, 0], [0, 0])
    assert step("sarathi", state((80, 1), (0, 64)), Counts(1, 1, 0), {"chunk_tokens": 32}) == ([1, 31], [0, 0])


def test_sarathi_keeps_the_blocks_of_a_prompt_begun_for_it() -> None:
    """The two blocks that are free belong to the rest of the second prompt; the third has to wait."""
    requests = state((64, 1), (32, 32), (0, 16))
    assert step("sarathi", requests, Counts(2, 1, 0), {"chunk_tokens": 60}, total_blocks=9) == ([1, 32, 0], [0, 0, 0])


@pytest.mark.parametrize("policy", ["sarathi", "vllm-chunked", "fastgen"])
def test_an_idle_cache_makes_room_once_though_an_emptied_one_stands_before_it(policy: str) -> None:
    """The decode takes one of the two blocks that the idle cache gives, and the prompt of three blocks does not fit."""
    requests = state((16, 1), (0, 48), (0, 0), (32, 0))
    tokens, evictions = step(policy, requests, Counts(1, 1, 2), {}, total_blocks=3)
    assert evictions == [0, 0, 0, 1]
    assert tokens == [1, 16 if policy == "fastgen" else 0, 0, 0]


def test_fastgen_begins_a_prompt_with_whatever_blocks_are_free() -> None:
    assert step("fastgen", state((100, 1), (0, 64)), Counts(1, 1, 0), {"forward_tokens": 64}) == ([1, 48], [0, 0])


def test_fastgen_leaves_a_decode_out_that_has_no_block() -> None:
    assert step("fastgen", state((80, 1), (79, 1)), Counts(2, 0, 0)) == ([0, 1], [0, 0])


def test_fastgen_takes_the_last_cache_away_only_if_nothing_else_can_be_done() -> None:
    assert step("fastgen", state((80, 1), (80, 1)), Counts(2, 0, 0)) == ([1, 0], [0, 1])


def test_random_order_depends_on_identity_and_seed_alone() -> None:
    requests = state(*[(0, 100)] * 6)
    chosen = {seed: tuple(step("random", requests, Counts(0, 6, 0), {"seed": seed})[0]) for seed in range(20)}
    assert len(set(chosen.values())) > 1
    assert all(sum(tokens) == 100 for tokens in chosen.values())
    assert all(step("random", requests, Counts(0, 6, 0), {"seed": seed})[0] == list(chosen[seed]) for seed in range(20))


def test_random_draws_are_uniform() -> None:
    draws = np.array([drawn(identity, seed) for identity in range(2000) for seed in range(5)])
    assert abs(draws.mean() - 0.5) < 0.015
    assert np.abs(np.histogram(draws, bins=10, range=(0, 1))[0] / len(draws) - 0.1).max() < 0.015


def test_the_shortest_prompt_goes_first() -> None:
    assert step("sjf", state((0, 120), (0, 100), (0, 60)), Counts(0, 3, 0)) == ([0, 0, 60], [0, 0, 0])


def test_demotion_serves_those_first_who_can_still_meet_their_target() -> None:
    requests = state((0, 100), (0, 90), (0, 80))
    requests.last_token_s[0] -= 5.0
    assert step("fcfs-demote", requests, Counts(0, 3, 0)) == ([0, 90, 0], [0, 0, 0])


def test_demotion_preempts_violators_before_the_request_admitted_last() -> None:
    requests = state((64, 1), (48, 1), (48, 1))
    requests.last_token_s[1] -= 5.0
    assert step("fcfs-demote", requests, Counts(3, 0, 0)) == ([1, 0, 1], [0, 1, 0])


def test_density_orders_by_pending_time_per_block() -> None:
    requests = state((0, 96), (0, 96), (0, 64))
    requests.last_token_s[:] = [9.6, 9.5, 9.6]
    assert step("density", requests, Counts(0, 3, 0)) == ([0, 96, 64], [0, 0, 0])


def test_parameters_of_another_policy_are_refused() -> None:
    with pytest.raises(
        SpecError, match=r"unknown parameter 'chunk_tokens' of batching policy 'vllm'; there are: ttft_slo_s, tbt_slo_s"
    ):
        policy_parameters("vllm", {"chunk_tokens": 512})
    with pytest.raises(SpecError, match="must be a non-negative number"):
        policy_parameters("sarathi", {"chunk_tokens": float("nan")})


def test_a_violator_regains_its_value_with_the_time_that_it_waits() -> None:
    """The long overdue first request beats one that is still in time, unless its demotion is for good."""
    requests = state((0, 100), (0, 100))
    requests.last_token_s[:] = [0.0, 9.4]
    assert step("apt-serve-decay", requests, Counts(0, 2, 0), {"half_life_s": 2.0}) == ([100, 0], [0, 0])
    assert step("apt-serve-decay", requests, Counts(0, 2, 0), {"half_life_s": 1e3}) == ([0, 100], [0, 0])
    assert step("apt-serve", requests, Counts(0, 2, 0)) == ([0, 100], [0, 0])
