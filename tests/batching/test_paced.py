"""Paced batches: appended prompts do not wait behind long ones, and long decodes give way while memory is short."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW, make_plan, make_workload

from optsched.batching.policies import policy_parameters
from optsched.batching.policies.dispatch import compiled_policy, own_parameters
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.domain.scenario import EngineSpec
from optsched.simulator.simulate import simulate

NOW_S = 10.0


def state(*requests: tuple[int, int, int]) -> Requests:
    """Requests of (context, new tokens, tokens put out), the last token 20 ms ago."""
    made = Requests.empty(len(requests))
    made.context[:], made.new_tokens[:], made.emitted[:] = np.array(requests).T
    made.cache[:] = np.where(made.context > 0, KV, 0)
    made.blocks[:] = -(-made.context // 16)
    made.last_token_s[:] = NOW_S - 0.02
    return made


def step(requests: Requests, counts: Counts, free: int = 100, budget: int = 512, **given: float) -> list[int]:
    parameters = policy_parameters("paced", given)
    total = free + int(requests.blocks.sum())
    engine = Engine(NOW_S, free, total, 16, 0, budget, 16, 0.0, 0.0, 1.0, 1.0, own_parameters("paced", parameters))
    decision = Decision.empty(len(requests.blocks))
    number = compiled_policy("paced")(requests, np.arange(len(requests.blocks)), counts, engine, decision)
    assert number == np.count_nonzero(decision.tokens)
    return decision.tokens.tolist()


LONG, SHORT = (900, 1, 400), (900, 1, 20)


def test_a_long_decode_gives_way_while_the_pool_is_full_and_its_last_token_recent() -> None:
    assert step(state(LONG, SHORT), Counts(2, 0, 0)) == [0, 1]
    assert step(state(LONG, SHORT), Counts(2, 0, 0), pace_s=0.015) == [1, 1]
    assert step(state(LONG, SHORT), Counts(2, 0, 0), after_tokens=400) == [1, 1]
    assert step(state(LONG, SHORT), Counts(2, 0, 0), above_share=0.6) == [1, 1]


def test_long_decodes_run_together_where_nobody_gains_by_their_waiting() -> None:
    assert step(state(LONG, LONG), Counts(2, 0, 0)) == [1, 1]
    assert step(state(LONG, (0, 300, 0)), Counts(1, 1, 0)) == [1, 300]


def test_a_prompt_begun_is_somebody_who_gains() -> None:
    assert step(state(LONG, (256, 200, 0)), Counts(2, 0, 0)) == [0, 200]


def test_a_short_prompt_that_appends_goes_before_a_long_one_that_has_begun() -> None:
    requests = state((1000, 3000, 0), (5000, 60, 0))
    assert step(requests, Counts(1, 1, 0), free=400) == [452, 60]
    assert step(requests, Counts(1, 1, 0), free=400, append_tokens=0) == [512, 0]


def test_appended_prompts_leave_half_of_the_budget_to_those_begun() -> None:
    requests = state((1000, 3000, 0), *[(5000, 200, 0)] * 4)
    assert step(requests, Counts(1, 4, 0), free=400) == [256, 200, 56, 0, 0]


def test_beside_decodes_prompts_are_cut_to_the_chunk_and_alone_they_are_not() -> None:
    assert step(state(SHORT, (0, 400, 0)), Counts(1, 1, 0), chunk_tokens=100) == [1, 100]
    assert step(state((0, 400, 0)), Counts(0, 1, 0), chunk_tokens=100) == [400]


def test_a_paced_decode_gets_a_token_every_pace_and_short_turns_end_sooner() -> None:
    workload = make_workload([[(2000, 400)], [(200, 60), (10, 60)]], [0.0, 2.5])
    told = {"after_tokens": 80, "pace_s": 0.1, "above_share": 0.0}
    engine, law = EngineSpec(max_batched_tokens=512, max_sequences=8), LAW.replace(floor_s=0.0, kv_s=5e-6)
    logs = {
        name: simulate(
            make_plan(["mixed"], law=law, policy="collocated", batching=name, engine=engine, batching_parameters=given), workload
        )
        for name, given in (("paced", told), ("vllm-chunked", {}))
    }
    assert logs["paced"].end_s[2] < 0.8 * logs["vllm-chunked"].end_s[2]
    token_s, beside = logs["paced"].token_s, (logs["paced"].first_token_s[1], logs["paced"].end_s[2])
    assert token_s is not None
    held = token_s[:400][(token_s[:400] > beside[0]) & (token_s[:400] < beside[1])]
    assert np.median(np.diff(held)) == pytest.approx(0.1, abs=0.02)
