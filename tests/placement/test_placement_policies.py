"""Placement policies: pure functions of what is observable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from optsched.errors import PlanError, SpecError, UnknownNameError
from optsched.placement.policies import POLICIES, make_policy, parameter_names
from optsched.placement.policies.collocated import Collocated
from optsched.placement.policies.conserve import ConServe
from optsched.placement.policies.full_disaggregation import FullDisaggregation
from optsched.placement.policies.optimised import Optimised
from optsched.placement.policies.per_turn import PerTurn, PerTurnEmulated, drawn
from optsched.placement.view import Away, ConversationView, FleetView, ReplicaView, Route, TurnView

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
policies = st.sampled_from(
    [
        Collocated(),
        Collocated(oracle=False),
        ConServe(),
        ConServe(oracle=True),
        ConServe(extra_tokens=0),
        FullDisaggregation(),
        PerTurn(),
    ]
)


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
        "adaptive": (
            "extra_tokens",
            "interference",
            "expected_tokens",
            "start_s",
            "longest_step_s",
            "most_backlog_s",
        ),
        "collocated": ("oracle", "extra_tokens", "admission"),
        "conserve": ("extra_tokens", "oracle"),
        "full-disaggregation": ("extra_tokens", "oracle"),
        "optimised": (),
        "per-turn": ("extra_tokens", "oracle", "error", "seed"),
        "per-turn-emulated": ("extra_tokens", "oracle", "wrong_share", "seed"),
    }


def test_an_unknown_policy_is_refused_with_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="Unknown placement policy 'conserv'; did you mean: conserve"):
        make_policy("conserv", {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("conserve", {"extra": 1.0}, "placement.parameters.extra: unknown parameter .* it has: extra_tokens, oracle"),
        ("conserve", {"extra_tokens": -1.0}, "-1.0: must be a whole number"),
        ("conserve", {"extra_tokens": 0.5}, "0.5: must be a whole number"),
        ("conserve", {"extra_tokens": float("nan")}, "nan: must be a whole number"),
        ("conserve", {"extra_tokens": float("inf")}, "inf: must be a whole number"),
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


def turn_of(conversation: int = 0, number: int = 1, output: int = 100) -> TurnView:
    """A turn at home on replica 1 of a prefiller and two decoders; 20 ms to move, 5 ms (prefiller: 2 ms) to append."""
    view = ConversationView(conversation, 0.0, 1000, 5000)
    return TurnView(view, number, 1, 1000, 60, (0.02, 0.0, 0.02), (0.002, 0.005, 0.005), (0.001, 0.0, 0.001), output)


def fleet_of(steps_s: tuple[float, float], others: int = 0, backlog_s: float = 0.0) -> FleetView:
    prefiller = ReplicaView(0, "prefill", 10_000, 0, 0, backlog_s, 0)
    decoders = [ReplicaView(i, "decode", 10_000, 2000, 0, 0.0, others, step) for i, step in zip((1, 2), steps_s, strict=True)]
    return FleetView(0.0, (prefiller, *decoders))


@pytest.mark.parametrize(
    ("fleet", "way"),
    [
        (fleet_of((0.010, 0.010)), None),  # nothing to gain
        (fleet_of((0.020, 0.010)), Away(2, 2, reuse=True)),  # 100 tokens at 10 ms less pay for 20 ms on the link
        (fleet_of((0.0102, 0.010)), None),  # they do not at 0.2 ms less
        (fleet_of((0.010, 0.010), others=9), Away(0, 1, reuse=True)),  # 5 ms for ten cost more than the way to the prefiller
        (fleet_of((0.010, 0.010), others=9, backlog_s=0.1), None),  # unless there is a queue
    ],
)
def test_a_per_turn_scheduler_takes_the_way_that_costs_least(fleet, way) -> None:
    assert PerTurn().later_turn(turn_of(), fleet) == way


def test_a_turn_does_not_move_to_a_decoder_that_it_does_not_fit() -> None:
    full = FleetView(0.0, (*fleet_of((0.02, 0.01)).replicas[:2], ReplicaView(2, "decode", 10_000, 9_000, 0, 0.0, 0, 0.01)))
    assert PerTurn().later_turn(turn_of(), full) is None


def test_predictions_are_right_on_average_and_as_wrong_as_they_are_told() -> None:
    policy = PerTurn(error=0.5)
    ratios = np.array([policy.predicted_tokens(turn_of(conversation)) / 100 for conversation in range(20_000)])
    assert ratios.mean() == pytest.approx(1, abs=0.02)
    assert np.log(ratios).std() == pytest.approx(0.5, rel=0.03)
    assert PerTurn().predicted_tokens(turn_of(7)) == 100


def test_draws_are_uniform_and_independent_from_turn_to_turn() -> None:
    draws = np.array([[drawn(42, conversation, turn) for turn in range(1, 5)] for conversation in range(4000)])
    assert kstest(draws.ravel(), "uniform").pvalue > 0.01
    assert np.abs(np.corrcoef(draws, rowvar=False) - np.eye(4)).max() < 0.05


def test_the_emulation_sends_its_share_of_turns_to_the_prefiller() -> None:
    policy, fleet = PerTurnEmulated(), fleet_of((0.01, 0.01))
    ways = [policy.later_turn(turn_of(conversation), fleet) for conversation in range(4000)]
    assert {way for way in ways if way} == {Away(0, 1, reuse=True)}
    assert sum(way is not None for way in ways) / 4000 == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("per-turn", {"error": -1.0}, r"placement.parameters.error: -1.0: must not be negative"),
        ("per-turn-emulated", {"wrong_share": 1.5}, r"placement.parameters.wrong_share: 1.5: must be a share of the turns"),
    ],
)
def test_parameters_out_of_range_are_refused_by_their_place(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_policy(name, parameters)
