"""Adaptive placement: what moves a conversation, what makes it wait, and what it may not look at."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given
from hypothesis import strategies as st
from placement_cases import replica as plan_replica
from strategies import workloads

from optsched.domain.plan import PlanLink
from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.placement.dispatcher import Dispatcher
from optsched.placement.policies import make_policy
from optsched.placement.policies.adaptive import Adaptive
from optsched.placement.policies.conserve import ConServe
from optsched.placement.view import ConversationView, FleetView, ReplicaView, Route
from optsched.simulator.simulate import simulate

POOL = 10_000


def view(
    index: int, conversations: int = 0, step_s: float = 0.01, backlog_s: float = 0.0, role: Role = "mixed", reserved: int = 0
) -> ReplicaView:
    return ReplicaView(index, role, POOL, reserved, 0, backlog_s, conversations, step_s)


def fleet(*replicas: ReplicaView) -> FleetView:
    return FleetView(0.0, replicas)


def arrived(replicas: int, prefill_s: float = 0.5, move_s: float = 0.1, first: int = 1000) -> ConversationView:
    return ConversationView(0, 0.0, first, first + 500, (prefill_s,) * replicas, (move_s,) * replicas)


@st.composite
def fleets(draw: st.DrawFn) -> FleetView:
    return FleetView(
        0.0,
        tuple(
            ReplicaView(
                index, draw(st.sampled_from(["mixed", "mixed", "prefill", "decode"])), POOL, draw(st.integers(0, POOL)),
                draw(st.integers(0, 900)), draw(st.sampled_from([0.0, 0.3, 2.0])), draw(st.integers(0, 4)),
                draw(st.sampled_from([0.01, 0.02, 0.06])),
            )
            for index in range(draw(st.integers(1, 5)))
        ),
    )  # fmt: skip


policies = st.builds(
    Adaptive, extra_tokens=st.integers(0, 800), interference=st.sampled_from([0.0, 1.0, 9.0]),
    expected_tokens=st.sampled_from([0, 400]), start_s=st.sampled_from([0.0, 0.5]),
    longest_step_s=st.sampled_from([0.0, 0.03]), most_backlog_s=st.sampled_from([0.0, 0.2]),
)  # fmt: skip


@given(policies, fleets(), st.integers(1, POOL), st.integers(1, 9000))
def test_it_is_pure_and_does_not_look_at_the_peak(policy: Adaptive, seen: FleetView, first: int, peak: int) -> None:
    conversation = arrived(5, first=first)
    other = dataclasses.replace(conversation, peak_tokens=first + peak)
    assert policy.prefill(conversation, seen) == policy.prefill(other, seen) == policy.prefill(conversation, seen)
    assert policy.decode(conversation, seen, 0) == policy.decode(other, seen, 0)
    assert policy.reservation(conversation) == policy.reservation(other) == first + policy.extra_tokens
    assert not policy.foresight


@given(policies, fleets(), st.integers(1, POOL))
def test_who_prefills_may_and_who_is_named_to_decode_has_room(policy: Adaptive, seen: FleetView, first: int) -> None:
    conversation = arrived(5, first=first)
    route = policy.prefill(conversation, seen)
    if route is not None:
        assert seen.replicas[route.prefill].role != "decode"
        assert route.decode in (None, route.prefill)
    decode = route.decode if route is not None and route.decode is not None else policy.decode(conversation, seen, 0)
    if decode is not None:
        assert seen.replicas[decode].role != "prefill"
        assert seen.replicas[decode].fits(first, policy.extra_tokens)


@given(policies, st.integers(1, POOL))
def test_an_idle_fleet_makes_nobody_wait(policy: Adaptive, first: int) -> None:
    assert policy.prefill(arrived(2, first=first), fleet(view(0, step_s=1.0), view(1, step_s=1.0))) is not None


def test_alone_a_conversation_stays_where_it_is_prefilled() -> None:
    assert Adaptive().prefill(arrived(2), fleet(view(0), view(1))) == Route(0, 0)


def test_a_prefill_avoids_the_replica_where_many_would_wait_for_it() -> None:
    seen = fleet(view(0, conversations=6), view(1, conversations=1))
    assert Adaptive().prefill(arrived(2), seen) == Route(1, 1)
    assert Adaptive(interference=0).prefill(arrived(2), seen) == Route(0, 0)


def test_it_moves_to_shorter_steps_if_they_pay_for_the_transfer() -> None:
    """0.5 s each for six who would wait against 0.1 s on the link; 400 steps of 20 or 10 ms."""
    seen = fleet(view(0, conversations=6), view(1, conversations=1, step_s=0.02))
    assert Adaptive().prefill(arrived(2), seen) == Route(1)
    assert Adaptive().decode(arrived(2), seen, 1) == 0
    assert Adaptive(expected_tokens=1).prefill(arrived(2), seen) == Route(1, 1)
    assert Adaptive(expected_tokens=1).decode(arrived(2), seen, 1) == 1


def test_decodes_gather_while_the_load_is_low() -> None:
    seen = fleet(view(0, conversations=1), view(1))
    assert Adaptive(interference=2, start_s=0).prefill(arrived(2), seen) == Route(1, 1)
    assert Adaptive(interference=2, start_s=0.5).prefill(arrived(2), seen) == Route(1)
    assert Adaptive(start_s=0.5).decode(arrived(2), seen, 1) == 0


def test_a_queue_costs_its_time() -> None:
    assert Adaptive().prefill(arrived(2), fleet(view(0, backlog_s=1.0), view(1, conversations=1))) == Route(1, 1)


def test_it_waits_while_steps_are_too_long_queues_too_long_or_pools_full() -> None:
    long, queued, full = view(0, 3, step_s=0.06), view(0, backlog_s=0.4), view(0, 3, reserved=POOL - 1200)
    assert Adaptive(longest_step_s=0.05).prefill(arrived(1), fleet(long)) is None
    assert Adaptive(longest_step_s=0.05).decode(arrived(1), fleet(long), 0) is None
    assert Adaptive(longest_step_s=0.07).prefill(arrived(1), fleet(long)) == Route(0, 0)
    assert Adaptive(most_backlog_s=0.3).prefill(arrived(1), fleet(queued)) is None
    assert Adaptive(most_backlog_s=0.5).prefill(arrived(1), fleet(queued)) == Route(0, 0)
    assert Adaptive(extra_tokens=600).prefill(arrived(1), fleet(full)) is None
    assert Adaptive(extra_tokens=200).prefill(arrived(1), fleet(full)) == Route(0, 0)


@pytest.mark.parametrize("name", ["interference", "expected_tokens", "start_s", "longest_step_s", "most_backlog_s"])
def test_negative_or_endless_parameters_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name}.*(must not be negative|whole number)"):
        make_policy("adaptive", {name: -1.0})
    with pytest.raises(SpecError, match=f"{name}.*(must not be negative|whole number)"):
        make_policy("adaptive", {name: float("inf")})


def test_the_dispatcher_tells_how_long_prefills_transfers_and_steps_take_to_those_who_ask() -> None:
    replicas = [plan_replica(0, "mixed", kv_blocks=100), plan_replica(1, "mixed", kv_blocks=100)]
    link = PlanLink(source="r0", target="r1", latency_s=0.01, bytes_per_s=1e6)
    seen: list[tuple[ConversationView, FleetView]] = []

    class Spy(Adaptive):
        def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
            seen.append((conversation, fleet))
            return Adaptive.prefill(self, conversation, fleet)

    asked = Dispatcher(Spy(), replicas, 16, 64, [link], 100.0)
    asked.arrive(0.0, ConversationView(0, 0.0, 200, 300))
    asked.arrive(0.0, ConversationView(1, 0.0, 200, 300))
    (first, before), (_, after) = seen
    law = replicas[0].coefficients
    assert first.prefill_s == (law.prefill_s(200, 0, 64),) * 2
    assert first.move_s == (pytest.approx(0.01 + 200 * 100 / 1e6), float("inf"))
    assert before.replicas[0].step_s == pytest.approx(law.step_s(1, 0.0, 0, 1))
    assert after.replicas[0].step_s == pytest.approx(law.step_s(1, 0.0, 800, 1))

    quiet = Dispatcher(ConServe(), replicas, 16, 64, [link], 100.0)
    quiet.arrive(0.0, ConversationView(0, 0.0, 200, 300))
    assert {replica.step_s for replica in quiet.view(0.0).replicas} == {0.0}


@given(
    workloads(max_conversations=8, max_turns=3), st.integers(0, 6), st.integers(1, 4), st.sampled_from([0, 1, 1000]),
    st.sampled_from([0, 400]), st.sampled_from([0.0, 0.001]), st.sampled_from([0.0, 1e-4]), st.booleans(),
)  # fmt: skip
def test_everybody_is_served_however_small_the_pools(
    workload: Workload, spare: int, count: int, interference: int, expected: int, late: float, step: float, paced: bool
) -> None:
    blocks = int(-(-workload.peak_tokens.max() // 16)) + 1 + spare
    parameters = {
        "extra_tokens": 0, "interference": interference, "expected_tokens": expected, "most_backlog_s": late,
        "longest_step_s": step,
    }  # fmt: skip
    plan = make_plan(
        ["mixed"] * count, kv_blocks=blocks, policy="adaptive", parameters=parameters,
        batching="paced" if paced else "vllm-chunked", engine=EngineSpec(max_batched_tokens=64, max_sequences=6),
    )  # fmt: skip
    log = simulate(plan, workload)
    assert log.violations(workload) == []
    moved = np.bincount(log.transfers.conversation, minlength=workload.num_conversations)
    assert moved.max() <= 1


def test_under_load_the_roles_of_mixed_replicas_change_over_time() -> None:
    """Three replicas: some conversations decode where they were prefilled, some move, and nobody only prefills."""
    workload = make_workload([[(900, 60), (10, 30)]] * 30, [0.02 * index for index in range(30)])
    plan = make_plan(["mixed"] * 3, policy="adaptive", kv_blocks=4000, parameters={"start_s": 0.2})
    log = simulate(plan, workload)
    first = workload.first_turn[:-1]
    stayed = log.prefill_replica[first] == log.decode_replica[first]
    assert 0 < stayed.sum() < 30
    assert set(log.decode_replica[first][~stayed].tolist()) | set(log.decode_replica[first][stayed].tolist()) == {0, 1, 2}


def test_of_unlike_gpus_the_faster_prefills_and_the_other_decodes_where_that_pays() -> None:
    """0.1 against 1 s for the prompt, and four decodes on the fast one that would wait for it."""
    conversation = ConversationView(0, 0.0, 1000, 1500, (0.1, 1.0), (0.05, 0.05))
    fast, slow = view(0, conversations=4, step_s=0.02), view(1, conversations=1, step_s=0.012)
    assert Adaptive().prefill(conversation, fleet(fast, slow)) == Route(0)
    assert Adaptive().decode(conversation, fleet(fast, slow), 0) == 1


def test_a_burst_is_spread_over_the_fleet_and_ends() -> None:
    workload = make_workload([[(800, 20), (10, 20)]] * 24, [0.0] * 24)
    log = simulate(make_plan(["mixed"] * 4, policy="adaptive", kv_blocks=600), workload)
    prefills = np.bincount(log.prefill_replica[workload.first_turn[:-1]], minlength=4)
    assert prefills.min() >= 4
    assert log.violations(workload) == []
