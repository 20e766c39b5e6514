"""Placement policies: pure functions of what is observable."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.errors import PlanError, SpecError, UnknownNameError
from optsched.placement.policies import POLICIES, make_policy, parameter_names
from optsched.placement.policies.collocated import Collocated
from optsched.placement.policies.conserve import ConServe
from optsched.placement.policies.optimised import Optimised
from optsched.placement.view import ConversationView, FleetView, ReplicaView, Route

roles = st.sampled_from(["prefill", "decode", "mixed"])


@st.composite
def fleets(draw: st.DrawFn) -> FleetView:
    replicas = []
    for index in range(draw(st.integers(1, 5))):
        pool = draw(st.integers(1, 4000))
        replicas.append(
            ReplicaView(
                index, draw(roles), pool, draw(st.integers(0, pool + 50)), draw(st.integers(0, 900)),
                draw(st.sampled_from([0.0, 0.5, 1.0, 2.5])), draw(st.integers(0, 4)),
            )
        )  # fmt: skip
    return FleetView(draw(st.floats(0, 100)), tuple(replicas))


conversations = st.builds(
    lambda first, more: ConversationView(0, 0.0, first, first + more), st.integers(1, 3000), st.integers(1, 3000)
)
policies = st.sampled_from([Collocated(), Collocated(oracle=False), ConServe(), ConServe(oracle=True), ConServe(extra_tokens=0)])


@given(policies, fleets(), conversations)
def test_policies_are_pure_and_answer_the_same_twice(policy, fleet, conversation) -> None:
    before = dataclasses.replace(fleet)
    assert policy.prefill(conversation, fleet) == policy.prefill(conversation, fleet)
    assert policy.decode(conversation, fleet, 0) == policy.decode(conversation, fleet, 0)
    assert fleet == before


@given(policies, fleets(), conversations)
def test_what_a_policy_reserves_fits_where_it_sends_the_conversation(policy, fleet, conversation) -> None:
    route = policy.prefill(conversation, fleet)
    if route is not None and route.decode is not None:
        assert fleet.replicas[route.decode].fits(*policy._need(conversation))
        assert fleet.replicas[route.decode].role != "prefill"
    if isinstance(policy, ConServe):
        decode = policy.decode(conversation, fleet, 0)
        if decode is not None:
            assert fleet.replicas[decode].fits(*policy._need(conversation))
            assert fleet.replicas[decode].role != "prefill"
        else:
            assert not any(replica.fits(*policy._need(conversation)) for replica in fleet.decoders())


@given(fleets(), conversations, st.sampled_from([Collocated(oracle=False), ConServe()]), st.integers(1, 9000))
def test_policies_without_foresight_do_not_look_at_the_peak(fleet, conversation, policy, peak) -> None:
    other = dataclasses.replace(conversation, peak_tokens=conversation.first_turn_tokens + peak)
    assert not policy.foresight
    assert policy.prefill(conversation, fleet) == policy.prefill(other, fleet)
    assert policy.decode(conversation, fleet, 0) == policy.decode(other, fleet, 0)
    assert policy.reservation(conversation) == policy.reservation(other)


def test_policies_that_read_the_peak_say_so() -> None:
    assert Collocated().foresight
    assert ConServe(oracle=True).foresight
    assert Optimised({}).foresight


def replica(index: int, role: str = "mixed", free: int = 1000, backlog_s: float = 0.0) -> ReplicaView:
    return ReplicaView(index, role, free, 0, 0, backlog_s, 0)  # type: ignore[arg-type]


def test_collocated_takes_the_mixed_replica_of_most_free_tokens_for_everything() -> None:
    fleet = FleetView(0.0, (replica(0, free=500), replica(1, "decode", free=9000), replica(2, free=800), replica(3, free=800)))
    assert Collocated().prefill(ConversationView(0, 0.0, 10, 700), fleet) == Route(2, 2)
    assert Collocated().prefill(ConversationView(0, 0.0, 10, 801), fleet) is None
    assert Collocated().decode(ConversationView(0, 0.0, 10, 700), fleet, 2) == 2


def test_conserve_takes_the_least_backlog_then_the_most_free_decoder_with_ties_by_index() -> None:
    fleet = FleetView(
        0.0,
        (replica(0, "prefill", backlog_s=2.0), replica(1, "prefill"), replica(2, "mixed"), replica(3, "decode", free=1000)),
    )
    conversation = ConversationView(0, 0.0, 300, 5000)
    assert ConServe().prefill(conversation, fleet) == Route(1, None)
    assert ConServe().decode(conversation, fleet, 1) == 2
    assert ConServe(oracle=True).decode(conversation, fleet, 1) is None
    assert ConServe().reservation(conversation) == 900


def test_optimised_follows_its_assignments_and_waits_for_the_pool() -> None:
    fleet = FleetView(0.0, (replica(0, "prefill"), replica(1, "decode", free=900), replica(2, "mixed", free=500)))
    policy = Optimised({0: (0, 1), 1: (2, 2)})
    small, large = ConversationView(0, 0.0, 10, 900), ConversationView(1, 0.0, 10, 501)
    assert policy.prefill(small, fleet) == Route(0, None)
    assert policy.decode(small, fleet, 0) == 1
    assert policy.decode(dataclasses.replace(small, peak_tokens=901), fleet, 0) is None
    assert policy.prefill(large, fleet) is None
    assert policy.prefill(dataclasses.replace(large, peak_tokens=500), fleet) == Route(2, 2)


def test_optimised_goes_elsewhere_when_the_assigned_replica_died() -> None:
    fleet = FleetView(0.0, (replica(1, "decode"), replica(2, "mixed", free=500)))
    policy = Optimised({0: (0, 5), 1: (0, 2)})
    assert policy.prefill(ConversationView(0, 0.0, 10, 20), fleet) == Route(2, None)
    assert policy.decode(ConversationView(0, 0.0, 10, 20), fleet, 2) == 1
    assert policy.prefill(ConversationView(1, 0.0, 10, 20), fleet) == Route(2, 2)


def test_optimised_refuses_a_conversation_without_assignment() -> None:
    with pytest.raises(PlanError, match="conversation 7 has no assignment; plan the same workload again"):
        Optimised({}).prefill(ConversationView(7, 0.0, 1, 2), FleetView(0.0, (replica(0),)))


def test_policies_are_made_by_name_with_their_parameters() -> None:
    assert make_policy("conserve", {"extra_tokens": 40, "oracle": 1.0}) == ConServe(40, oracle=True)
    assert make_policy("collocated", {"oracle": 0}) == Collocated(oracle=False)
    assert make_policy("optimised", {}, {0: (1, 2)}) == Optimised({0: (1, 2)})
    assert {name: parameter_names(name) for name in POLICIES} == {
        "collocated": ("oracle", "extra_tokens", "admission"),
        "conserve": ("extra_tokens", "oracle"),
        "optimised": (),
    }


def test_an_unknown_policy_is_refused_with_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="Unknown placement policy 'conserv'; did you mean: conserve"):
        make_policy("conserv", {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("conserve", {"extra": 1.0}, "placement.parameters.extra: unknown parameter .* it has: extra_tokens, oracle"),
        ("conserve", {"extra_tokens": -1.0}, "-1.0: must be a whole number of tokens"),
        ("conserve", {"extra_tokens": 0.5}, "0.5: must be a whole number of tokens"),
        ("conserve", {"extra_tokens": float("nan")}, "nan: must be a whole number of tokens"),
        ("conserve", {"extra_tokens": float("inf")}, "inf: must be a whole number of tokens"),
        ("collocated", {"oracle": 2.0}, "2.0: a switch; give 0 or 1"),
        ("optimised", {"oracle": 1.0}, "follows assignments, and the plan has none"),
    ],
)
def test_wrong_parameters_are_refused(name, parameters, message) -> None:
    with pytest.raises(SpecError, match=message):
        make_policy(name, parameters)


def test_optimised_has_no_parameters() -> None:
    with pytest.raises(SpecError, match="unknown parameter of placement policy 'optimised'; it has: none"):
        make_policy("optimised", {"oracle": 1.0}, {})


@pytest.mark.parametrize("policy", [ConServe, Collocated])
def test_a_negative_reservation_is_refused(policy) -> None:
    with pytest.raises(SpecError, match="extra_tokens: -1: must not be negative"):
        policy(extra_tokens=-1)


def test_headroom_beyond_a_whole_pool_asks_for_the_whole_pool() -> None:
    conversation = ConversationView(0, 0.0, 300, 5000)
    assert ConServe(extra_tokens=10_000).decode(conversation, FleetView(0.0, (replica(0, "decode", free=1000),)), 0) == 0
    assert ConServe(extra_tokens=10_000).decode(conversation, FleetView(0.0, (replica(0, "decode", free=299),)), 0) is None


def test_collocated_without_admission_spreads_conversations_and_never_waits() -> None:
    fleet = FleetView(0.0, (ReplicaView(0, "mixed", 100, 100, 0, 0.0, 3), ReplicaView(1, "mixed", 100, 100, 0, 0.0, 2)))
    policy = make_policy("collocated", {"admission": 0})
    conversation = ConversationView(0, 0.0, 5000, 9000)
    assert policy.prefill(conversation, fleet) == Route(1, 1)
    assert policy.reservation(conversation) == 0
    assert not policy.foresight
