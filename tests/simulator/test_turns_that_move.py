"""Turns that leave the replica that holds their cache: who computes them, what moves, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW, make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Assignment
from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.simulator.simulate import simulate

SPLIT: list[Role] = ["prefill", "decode", "decode"]
BYTES = 2 * 2 * 2 * 32 * 4  # per token of the factories' llm: K and V of 2 layers with 2 heads of 32 floats
ONE = make_workload([[(100, 5), (20, 7), (30, 4)]], [0.0])


def moves(log: ExecutionLog) -> list[tuple[int, int, int]]:
    """Return source, target and tokens of every transfer, in order."""
    order = np.argsort(log.transfers.start_s)
    t = log.transfers
    return [(int(t.source[i]), int(t.target[i]), int(t.bytes[i] / BYTES)) for i in order]


def test_under_full_disaggregation_every_turn_computes_and_moves_all_that_was_said() -> None:
    log = simulate(make_plan(["prefill", "decode"], policy="full-disaggregation"), ONE)
    assert log.prefill_replica.tolist() == [0, 0, 0]
    assert log.decode_replica.tolist() == [1, 1, 1]
    assert moves(log) == [(0, 1, 100), (0, 1, 125), (0, 1, 162)]
    assert int(log.steps.prefill_tokens.sum()) == 100 + 125 + 162
    assert [event.kind for event in log.events] == ["dropped", "dropped"]


def test_a_turn_sent_away_takes_its_cache_along_and_sends_back_what_was_added() -> None:
    plan = make_plan(["prefill", "decode"], policy="per-turn-emulated", parameters={"wrong_share": 1.0})
    log = simulate(plan, ONE)
    assert log.prefill_replica.tolist() == [0, 0, 0]
    assert log.decode_replica.tolist() == [1, 1, 1]
    # The last output token of a turn is cached with the next prompt.
    assert moves(log) == [(0, 1, 100), (1, 0, 104), (0, 1, 21), (1, 0, 131), (0, 1, 31)]
    assert int(log.steps.prefill_tokens.sum()) == 100 + 21 + 31


def test_the_first_token_of_a_visiting_turn_comes_after_the_way_there_and_the_prefill() -> None:
    plan = make_plan(["prefill", "decode"], policy="per-turn-emulated", parameters={"wrong_share": 1.0})
    log = simulate(plan, ONE)
    link = plan.links[0]
    there_s = link.latency_s + 104 * BYTES / link.bytes_per_s
    expected = log.arrival_s[1] + there_s + LAW.prefill_s(21, 104, 256)
    assert log.first_token_s[1] == pytest.approx(expected)


def test_nobody_leaves_when_no_decision_is_wrong() -> None:
    work = random_work(np.random.default_rng(3), 20, 0.0)
    own = simulate(make_plan(SPLIT, policy="conserve"), work)
    emulated = simulate(make_plan(SPLIT, policy="per-turn-emulated", parameters={"wrong_share": 0.0}), work)
    assert np.array_equal(own.token_s, emulated.token_s)
    assert len(own.transfers.source) == 20


def test_a_scheduler_that_is_charged_dearly_for_transfers_keeps_every_turn_at_home() -> None:
    plan = make_plan(SPLIT, policy="per-turn")
    slow = plan.replace(links=tuple(link.replace(latency_s=100.0) for link in plan.links))
    assert len(simulate(slow, random_work(np.random.default_rng(5), 10, 0.0)).transfers.source) == 10


def random_work(rng: np.random.Generator, conversations: int, gap_s: float) -> Workload:
    turns = [
        [(int(rng.integers(50, 300)), int(rng.integers(1, 20)))]
        + [(int(rng.integers(1, 40)), int(rng.integers(1, 30))) for _ in range(rng.integers(0, 5))]
        for _ in range(conversations)
    ]
    return make_workload(turns, list(np.cumsum(rng.exponential(0.02, conversations))), gap_s=gap_s)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([("full-disaggregation", {}), ("per-turn", {"error": 1.0}), ("per-turn-emulated", {"wrong_share": 0.5})]),
    st.sampled_from([SPLIT, ["prefill", "prefill", "decode"], ["prefill", "decode", "mixed"]]),
    st.sampled_from([50, 80, 400]),
    st.sampled_from(["vllm", "vllm-chunked", "sarathi"]),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_every_conversation_ends_however_little_memory_there_is(seed, policy, roles, blocks, batching, gap_s) -> None:
    """The simulator itself checks that no token and no block is lost."""
    rng = np.random.default_rng(seed)
    work = random_work(rng, int(rng.integers(2, 30)), gap_s)
    name, parameters = policy
    plan = make_plan(roles, policy=name, parameters=parameters, kv_blocks=blocks, batching=batching)
    log = simulate(plan, work)
    assert np.isfinite(log.end_s).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    wrong_share=st.one_of(st.just(1.0), st.floats(0, 1)),
    roles=st.sampled_from([["prefill", "decode"], SPLIT, ["prefill", "prefill", "decode"]]),
    spare=st.integers(0, 6),
    extra_tokens=st.sampled_from([0, 300]),
    batching=st.sampled_from(["vllm", "vllm-chunked", "sjf", "fastgen", "apt-serve", "attain"]),
)
def test_however_many_decisions_are_wrong_nobody_waits_for_ever(seed, wrong_share, roles, spare, extra_tokens, batching) -> None:
    """Pools are hardly larger than the longest conversation."""
    rng = np.random.default_rng(seed)
    work = random_work(rng, int(rng.integers(2, 14)), float(rng.choice([0.0, 0.01, 1.0])))
    plan = make_plan(
        roles, policy="per-turn-emulated", parameters={"wrong_share": wrong_share, "extra_tokens": extra_tokens},
        kv_blocks=-(-int(work.peak_tokens.max()) // 16) + spare, batching=batching,
        engine=EngineSpec(max_batched_tokens=int(rng.choice([64, 256])), max_sequences=int(rng.choice([4, 16]))),
    )  # fmt: skip
    log = simulate(plan, work)
    assert np.isfinite(log.end_s).all()


def test_a_turn_whose_prefiller_has_no_room_for_its_cache_is_computed_at_home() -> None:
    """The prefiller has 8 blocks, room for the first two turns and not for the third."""
    plan = make_plan(["prefill", "decode"], policy="per-turn-emulated", parameters={"wrong_share": 1.0})
    small = plan.replicas[0].replace(kv_blocks=8)
    log = simulate(plan.replace(replicas=(small, plan.replicas[1])), ONE)
    assert log.prefill_replica.tolist() == [0, 0, 1]
    assert moves(log) == [(0, 1, 100), (1, 0, 104), (0, 1, 21)]


def test_a_visit_is_called_back_where_the_prefiller_runs_out_of_memory() -> None:
    """Two turns arrive together and find room for either; the first takes it, the other is computed with what was kept at home."""
    work = make_workload([[(64, 3), (160, 5)], [(64, 2), (160, 5)]], [0.0, 0.0])
    plan = make_plan(["prefill", "decode"], policy="per-turn-emulated", parameters={"wrong_share": 1.0})
    small = plan.replicas[0].replace(kv_blocks=20)
    log = simulate(plan.replace(replicas=(small, plan.replicas[1])), work)
    assert log.arrival_s[1] == log.arrival_s[3]
    assert log.prefill_replica.tolist() == [0, 0, 0, 1]
    assert moves(log) == [(0, 1, 64), (0, 1, 64), (1, 0, 66), (1, 0, 65), (0, 1, 161)]
    assert log.events == ()
    assert int(log.steps.prefill_tokens.sum()) == 2 * 64 + 2 * 161


def test_prompts_that_share_cache_and_turns_that_leave_it_are_refused_together() -> None:
    plan = make_plan(SPLIT, policy="per-turn", engine=EngineSpec(prefix_caching=True))
    with pytest.raises(SpecError, match=r"prefix_caching: true: prompts that share cache cannot leave it.*leave it out"):
        simulate(plan, ONE)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from([("per-turn", {"error": 1.0}), ("per-turn", {"extra_tokens": 0}), ("conserve", {"extra_tokens": 0}), ("adaptive", {})]),
    roles=st.sampled_from([["mixed"] * 2, ["mixed"] * 4, ["prefill", "mixed", "mixed"], ["mixed", "decode", "mixed"]]),
    spare=st.integers(0, 6),
    batching=st.sampled_from(["vllm-chunked", "fastgen"]),
)  # fmt: skip
def test_replicas_that_compute_first_turns_for_each_other_never_wait_in_a_circle(seed, policy, roles, spare, batching) -> None:
    rng = np.random.default_rng(seed)
    work = random_work(rng, int(rng.integers(2, 30)), float(rng.choice([0.0, 0.01, 1.0])))
    name, parameters = policy
    plan = make_plan(
        roles, policy=name, parameters=parameters, batching=batching,
        kv_blocks=-(-int(work.peak_tokens.max()) // 16) + spare,
        engine=EngineSpec(max_batched_tokens=int(rng.choice([64, 256])), max_sequences=int(rng.choice([4, 16]))),
    )  # fmt: skip
    assert np.isfinite(simulate(plan, work).end_s).all()


def test_a_cache_stays_where_it_is_when_its_replica_can_serve_nobody_else() -> None:
    """Two mixed replicas of nine blocks each hold a prompt for the other, and neither has room for it."""
    work = make_workload([[(96, 40)], [(96, 40)]], [0.0, 0.0])
    plan = make_plan(["mixed", "mixed"], policy="optimised", kv_blocks=9)
    crossed = (Assignment(conversation=0, prefill="r0", decode="r1"), Assignment(conversation=1, prefill="r1", decode="r0"))
    log = simulate(plan.replace(placement=plan.placement.replace(assignments=crossed)), work)
    assert np.isfinite(log.end_s).all()
    assert log.decode_replica.tolist() != [1, 0]
    assert len(log.transfers.source) <= 1
