"""Policy attain: whom it holds, whom it lets go, and that both are the best that a step can do."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from factories import LAW, make_plan, make_workload
from hypothesis import given
from hypothesis import strategies as st

from optsched.batching.policies import policy_parameters
from optsched.batching.policies.dispatch import compiled_policy, own_parameters
from optsched.batching.state import KV, NO_LAW, Counts, Decision, Engine, Requests
from optsched.batching.step_time import law_rows
from optsched.domain.attainment import attained
from optsched.domain.log import ExecutionLog
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

ENGINE = Engine(10.0, 10, 10, 16, 0, 512, 8, 0.0, 0.0, 1.0, 1.0)
SLOW = law_rows(make_plan(["mixed"], law=LAW.replace(gemm_tokens=(0, 1), gemm_s=(0.0, 1e-3), gemm_j=(0, 0))).replicas)[0]
"""A law under which a step takes about a millisecond per token."""


def state(*rows: tuple[int, int, float]) -> Requests:
    """Build requests from (context, new tokens, seconds since the last token or the arrival)."""
    requests = Requests.empty(len(rows))
    requests.identity[:] = np.arange(len(rows))
    for slot, (context, new_tokens, pending_s) in enumerate(rows):
        requests.context[slot], requests.new_tokens[slot] = context, new_tokens
        requests.emitted[slot] = int(context > 0 and new_tokens == 1)
        requests.arrival_s[slot] = requests.last_token_s[slot] = ENGINE.now_s - pending_s
        requests.blocks[slot], requests.cache[slot] = -(-context // 16), KV if context else 0
    return requests


def decided(requests: Requests, counts: Counts, given: dict[str, float], **engine: object) -> Decision:
    decision = Decision.empty(len(requests.blocks))
    free = int(engine.get("total_blocks", ENGINE.total_blocks)) - int(requests.blocks.sum())  # type: ignore[call-overload]
    own = own_parameters("attain", policy_parameters("attain", given))
    at = ENGINE._replace(**{"free_blocks": free, "parameters": own, **engine})  # type: ignore[arg-type]
    compiled_policy("attain")(requests, np.arange(len(requests.blocks)), counts, at, decision)
    return decision


def step(
    requests: Requests, counts: Counts, given: dict[str, float] | None = None, **engine: object
) -> tuple[list[int], list[int]]:
    decision = decided(requests, counts, given or {}, **engine)
    return decision.tokens.tolist(), decision.evict.tolist()


def test_the_waiting_who_lack_the_fewest_blocks_are_admitted_first() -> None:
    assert step(state((0, 90, 0.1), (0, 64, 0.2), (0, 80, 0.3)), Counts(0, 3, 0)) == ([0, 64, 80], [0, 0, 0])


def test_a_cached_context_counts_only_by_the_blocks_that_it_lacks() -> None:
    assert step(state((0, 64, 0.1), (80, 16, 0.1)), Counts(0, 2, 0)) == ([64, 16], [0, 0])
    assert step(state((0, 80, 0.1), (80, 16, 0.1)), Counts(0, 2, 0)) == ([0, 16], [0, 0])


def test_those_who_are_lost_make_room_the_latest_arrival_first() -> None:
    requests = state((48, 1, 3.0), (47, 1, 2.0), (31, 1, 0.1), (0, 48, 0.1))
    assert step(requests, Counts(3, 1, 0)) == ([1, 0, 1, 48], [0, 1, 0, 0])


def test_one_who_can_attain_is_not_evicted_for_another() -> None:
    assert step(state((130, 1, 0.1), (0, 32, 0.1)), Counts(1, 1, 0)) == ([1, 0], [0, 0])


def test_where_memory_runs_out_the_lost_go_first_then_the_largest() -> None:
    requests = state((48, 1, 0.1), (64, 1, 0.1), (48, 1, 5.0))
    assert step(requests, Counts(3, 0, 0)) == ([1, 1, 0], [0, 0, 1])
    requests = state((48, 1, 0.1), (64, 1, 0.1), (48, 1, 0.1))
    assert step(requests, Counts(3, 0, 0)) == ([1, 0, 1], [0, 1, 0])


def test_ties_go_to_the_fewest_tokens_then_the_earliest_arrival_and_are_evicted_in_the_order_of_the_latest() -> None:
    alone = {"total_blocks": 7}
    assert step(state((0, 90, 0.1), (0, 81, 0.2), (0, 85, 0.3)), Counts(0, 3, 0), **alone) == ([0, 81, 0], [0, 0, 0])
    assert step(state((0, 90, 0.1), (0, 90, 0.3), (0, 90, 0.2)), Counts(0, 3, 0), **alone) == ([0, 90, 0], [0, 0, 0])
    assert step(state((0, 90, 0.2), (0, 90, 0.2)), Counts(0, 2, 0), **alone) == ([90, 0], [0, 0])
    requests = state((48, 1, 0.1), (48, 1, 0.1), (48, 1, 0.1))
    requests.arrival_s[:] = ENGINE.now_s - np.array([3.0, 1.0, 2.0])
    assert step(requests, Counts(3, 0, 0)) == ([1, 0, 1], [0, 1, 0])


def test_one_token_late_makes_a_request_lost_however_soon_the_next_one_comes() -> None:
    requests = state((64, 1, 0.1), (80, 1, 0.1), (0, 32, 0.1))
    requests.late[0] = 1
    assert step(requests, Counts(2, 1, 0)) == ([0, 1, 32], [1, 0, 0])


def test_the_lost_are_admitted_by_arrival_if_nobody_else_waits_and_headroom_remains() -> None:
    requests = state((16, 1, 0.1), (0, 32, 3.0), (0, 32, 4.0))
    assert step(requests, Counts(1, 2, 0), {"headroom_share": 0.0}) == ([1, 32, 32], [0, 0, 0])
    assert step(requests, Counts(1, 2, 0), {"headroom_share": 0.5}) == ([1, 0, 32], [0, 0, 0])
    assert step(state((16, 1, 0.1), (0, 200, 0.1), (0, 32, 4.0)), Counts(1, 2, 0)) == ([1, 0, 0], [0, 0, 0])


def test_a_guarded_request_comes_first_and_is_not_evicted_for_others() -> None:
    requests = state((0, 128, 9.0), (0, 64, 0.1))
    assert step(requests, Counts(0, 2, 0)) == ([0, 64], [0, 0])
    assert step(requests, Counts(0, 2, 0), {"lost_share": 0.01}) == ([128, 0], [0, 0])
    requests = state((128, 1, 9.0), (0, 64, 0.1))
    assert step(requests, Counts(1, 1, 0)) == ([0, 64], [1, 0])
    assert step(requests, Counts(1, 1, 0), {"lost_share": 0.01}) == ([1, 0], [0, 0])


def test_prompts_are_prefilled_by_deadline() -> None:
    requests = state((0, 40, 0.1), (0, 48, 0.5))
    assert step(requests, Counts(0, 2, 0), {"chunk_tokens": 60}) == ([12, 48], [0, 0])


def test_the_chunk_shrinks_until_the_decodes_stay_in_time() -> None:
    requests = state((16, 1, 0.9), (0, 128, 0.1))
    assert step(requests, Counts(1, 1, 0), {"chunk_tokens": 129}) == ([1, 128], [0, 0])
    assert step(requests, Counts(1, 1, 0), {"chunk_tokens": 129}, law=SLOW) == ([1, 64], [0, 0])


def test_the_chunk_grows_if_that_brings_a_first_token_in_time() -> None:
    """A step takes 5 ms and 1 ms per token: 133 ms for 128 tokens in one step, 138 in two, 148 in four."""
    law = SLOW.copy()
    law[0] = 5e-3
    for pending_s, tokens in ((0.84, 32), (0.855, 64), (0.8645, 128)):
        assert step(state((0, 128, pending_s)), Counts(0, 1, 0), {"chunk_tokens": 32}, law=law) == ([tokens], [0])


def test_who_cannot_have_the_first_token_in_time_is_lost_already() -> None:
    """The law says 100 ms for the longer prompt, which has 50 ms left."""
    requests = state((0, 100, 0.95), (0, 110, 0.1))
    assert step(requests, Counts(0, 2, 0)) == ([100, 0], [0, 0])
    assert step(requests, Counts(0, 2, 0), law=SLOW) == ([0, 110], [0, 0])


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Requests, Counts, int]:
    """Draw decodes that hold blocks and prompts that wait, some of both late, and the blocks of the pool."""
    running, waiting = draw(st.integers(0, 5)), draw(st.integers(0, 7))
    contexts = draw(st.lists(st.integers(1, 80), min_size=running, max_size=running))
    prompts = draw(st.lists(st.integers(1, 80), min_size=waiting, max_size=waiting))
    pending = draw(st.lists(st.sampled_from([0.1, 0.2, 2.0, 3.0]), min_size=running + waiting, max_size=running + waiting))
    rows = [(c, 1) for c in contexts] + [(0, p) for p in prompts]
    requests = state(*[(*row, p) for row, p in zip(rows, pending, strict=True)])
    return requests, Counts(running, waiting, 0), int(requests.blocks.sum()) + draw(st.integers(0, 8))


@given(crowd=crowds())
def test_no_step_could_hold_more_requests_that_can_attain(crowd: tuple[Requests, Counts, int]) -> None:
    """Against every subset: first of the running ones to keep, then of the waiting ones to admit beside them."""
    requests, counts, total = crowd
    decision = decided(requests, counts, {"chunk_tokens": 5000}, total_blocks=total, max_batched_tokens=5000, max_sequences=50)
    able = ENGINE.now_s - requests.last_token_s < 1.0
    whole = -(-(requests.context + requests.new_tokens) // 16)
    running = [slot for slot in range(counts.running) if able[slot]]
    waiting = [slot for slot in range(counts.running, len(able)) if able[slot]]
    kept = [slot for slot in running if not decision.evict[slot]]
    most = max(n for n in range(len(running) + 1) for some in combinations(running, n) if whole[list(some)].sum() <= total)
    assert len(kept) == most or (most == 0 and counts.running)
    room = total - whole[kept].sum()
    best = max(n for n in range(len(waiting) + 1) for some in combinations(waiting, n) if whole[list(some)].sum() <= room)
    assert np.count_nonzero(decision.tokens[waiting]) == best


@given(crowd=crowds(), data=st.data(), law=st.sampled_from([NO_LAW, SLOW]))
def test_renaming_slots_and_conversations_changes_nothing(
    crowd: tuple[Requests, Counts, int], data: st.DataObject, law: np.ndarray
) -> None:
    requests, counts, total = crowd
    count = len(requests.blocks)
    moved = np.array(data.draw(st.permutations(range(count))), np.int64)
    renamed = Requests(*(field[np.argsort(moved)] for field in requests))
    renamed.identity[:] = data.draw(st.permutations(range(count)))
    own = own_parameters("attain", policy_parameters("attain", {"lost_share": data.draw(st.sampled_from([0.0, 0.2]))}))
    at = ENGINE._replace(total_blocks=total, free_blocks=total - int(requests.blocks.sum()), parameters=own, law=law)
    plain, other = Decision.empty(count), Decision.empty(count)
    decide = compiled_policy("attain")
    assert decide(requests, np.arange(count), counts, at, plain) == decide(renamed, moved, counts, at, other)
    np.testing.assert_array_equal(plain.tokens, other.tokens[moved])
    np.testing.assert_array_equal(plain.evict, other.evict[moved])


def run(workload: Workload, policy: str, parameters: dict[str, float] | None = None) -> ExecutionLog:
    """Simulate one replica of 60 blocks with targets of 0.1 s; conservation is checked."""
    plan = make_plan(
        ["mixed"], policy="collocated", parameters={"oracle": 0, "admission": 0}, batching=policy, kv_blocks=60,
        engine=EngineSpec(max_batched_tokens=256, max_sequences=32),
        batching_parameters={"ttft_slo_s": 0.1, "tbt_slo_s": 0.1, **(parameters or {})},
    )  # fmt: skip
    return simulate(plan, workload)


def crowded(seed: int, rate_per_s: float) -> Workload:
    random = np.random.default_rng(seed)
    prompts, outputs = random.geometric(1 / 60, 300), random.geometric(1 / 40, 300)
    return make_workload(
        [[(int(p), int(o))] for p, o in zip(prompts, outputs, strict=True)],
        np.cumsum(random.exponential(1 / rate_per_s, 300)).tolist(),
    )


@pytest.mark.parametrize("rate_per_s", [60.0, 200.0])
def test_more_requests_attain_than_under_apt_serve_and_no_fewer_are_served_in_time(rate_per_s: float) -> None:
    for seed in range(3):
        workload = crowded(seed, rate_per_s)
        ours, theirs = (run(workload, policy) for policy in ("attain", "apt-serve"))
        shares = [attained(log, workload, 0.1, 0.1).strict.mean() for log in (ours, theirs)]
        assert shares[0] > 1.1 * shares[1]
        over = workload.arrival_s.max() + 1.0
        assert np.count_nonzero(ours.end_s > over) <= np.count_nonzero(theirs.end_s > over)


def test_a_lost_request_is_finished_when_the_load_permits_and_sooner_if_it_is_guarded() -> None:
    """A prompt of nearly the whole pool among hundreds of small ones, which alone fill it for three seconds."""
    small = np.linspace(0, 3.0, 600).tolist()
    large = int(np.searchsorted(small, 0.1))
    turns = [[(30, 30)]] * large + [[(600, 40)]] + [[(30, 30)]] * (600 - large)
    workload = make_workload(turns, sorted([0.1, *small]))
    ends = {share: run(workload, "attain", {"lost_share": share}).end_s[large] for share in (0.0, 0.01)}
    assert 3.0 < ends[0.0] < np.inf
    assert ends[0.01] < 2.0
