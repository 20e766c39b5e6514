"""The dispatcher's books, driven by random conversations on a toy clock."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_cases import FLEETS, replica

from optsched.domain.scenario import Role
from optsched.errors import InfeasibleError
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.placement.policies.collocated import Collocated
from optsched.placement.policies.conserve import ConServe
from optsched.placement.policies.optimised import Optimised
from optsched.placement.view import ConversationView, PlacementPolicy


class Clock:
    """Run a dispatcher: prefills and conversations take given times; check the books after every event."""

    def __init__(self, policy: PlacementPolicy, roles: list[Role], jobs: list[tuple[float, int, int, float, float]]) -> None:
        self.replicas = [replica(i, role, kv_blocks=25) for i, role in enumerate(roles)]
        self.dispatcher = Dispatcher(policy, self.replicas, 16, 64)
        self.jobs, self.events = jobs, [(job[0], 0, c) for c, job in enumerate(jobs)]
        heapq.heapify(self.events)
        self.prefills: list[int] = []
        self.decodes: list[int] = []
        self.placed: dict[int, int] = {}

    def run(self) -> None:
        while self.events:
            now, kind, c = heapq.heappop(self.events)
            first, more = self.jobs[c][1:3]
            if kind == 0:
                grants = self.dispatcher.arrive(now, ConversationView(c, now, first, first + more))
            elif kind == 1:
                grants = self.dispatcher.prefilled(now, c)
            else:
                grants = self.dispatcher.finished(now, c)
            for grant in grants:
                self.take(now, grant)
            self.check(now)

    def take(self, now: float, grant: Grant) -> None:
        _, _, _, prefill_s, rest_s = self.jobs[grant.conversation]
        if grant.kind == "prefill":
            self.prefills.append(grant.conversation)
            heapq.heappush(self.events, (now + prefill_s, 1, grant.conversation))
        else:
            self.decodes.append(grant.conversation)
            self.placed[grant.conversation] = grant.replica
            heapq.heappush(self.events, (now + rest_s, 2, grant.conversation))

    def check(self, now: float) -> None:
        for view in self.dispatcher.view(now).replicas:
            assert 0 <= view.reserved_tokens <= view.kv_tokens
            assert view.backlog_tokens >= 0
            assert view.backlog_s >= 0
            assert view.conversations >= 0


job = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.integers(1, 200), st.integers(1, 150), st.sampled_from([0.1, 1.0]),
    st.sampled_from([0.2, 3.0]),
)  # fmt: skip


@given(st.sampled_from(FLEETS), st.lists(job, min_size=1, max_size=12), st.booleans())
def test_reservations_stay_within_pools_everyone_is_served_in_order_and_the_books_close(roles, jobs, oracle) -> None:
    clock = Clock(ConServe(extra_tokens=100, oracle=oracle), roles, jobs)
    clock.run()
    arrivals = [c for _, c in sorted((job[0], c) for c, job in enumerate(jobs))]
    assert clock.prefills == arrivals
    assert sorted(clock.decodes) == list(range(len(jobs)))
    assert clock.dispatcher.waiting() == 0
    for view in clock.dispatcher.view(0.0).replicas:
        assert (view.reserved_tokens, view.backlog_tokens, view.conversations) == (0, 0, 0)
        assert view.backlog_s == pytest.approx(0.0, abs=1e-9)


@given(st.integers(1, 3), st.lists(job, min_size=1, max_size=12), st.booleans())
def test_collocated_conversations_stay_where_they_were_prefilled(count, jobs, oracle) -> None:
    clock = Clock(Collocated(oracle=oracle, extra_tokens=100), ["mixed"] * count, jobs)
    clock.run()
    assert clock.prefills == [c for _, c in sorted((job[0], c) for c, job in enumerate(jobs))]
    assert sorted(clock.decodes) == list(range(len(jobs)))


@given(st.lists(job, min_size=1, max_size=10), st.data())
def test_optimised_conversations_go_where_they_were_assigned(jobs, data) -> None:
    roles: list[Role] = ["prefill", "decode", "mixed"]
    pairs = st.sampled_from([(0, 1), (0, 2), (2, 2), (2, 1)])
    assignments = {c: data.draw(pairs) for c in range(len(jobs))}
    clock = Clock(Optimised(assignments), roles, jobs)
    clock.run()
    assert clock.placed == {c: d for c, (_, d) in assignments.items()}


def test_who_waits_for_a_full_decoder_holds_up_only_those_assigned_to_it() -> None:
    replicas = [replica(0, "mixed", kv_blocks=25), replica(1, "mixed", kv_blocks=25)]
    dispatcher = Dispatcher(Optimised({0: (0, 0), 1: (0, 0), 2: (1, 1), 3: (0, 0)}), replicas, 16, 64)
    first, large, elsewhere, small = (ConversationView(c, 0.0, tokens, tokens) for c, tokens in enumerate([300, 200, 200, 50]))
    assert dispatcher.arrive(0.0, first) == [Grant("prefill", 0, 0)]
    assert dispatcher.arrive(0.1, large) == []
    assert dispatcher.arrive(0.2, elsewhere) == [Grant("prefill", 2, 1)]
    assert dispatcher.arrive(0.3, small) == []  # it would fit, but the large one came first
    assert dispatcher.waiting() == 2
    assert dispatcher.prefilled(1.0, 0) == [Grant("decode", 0, 0)]
    assert dispatcher.finished(2.0, 0) == [Grant("prefill", 1, 0), Grant("prefill", 3, 0)]
    assert dispatcher.waiting() == 0


def test_who_is_lost_while_waiting_leaves_its_own_queue() -> None:
    replicas = [replica(0, "mixed", kv_blocks=25), replica(1, "mixed", kv_blocks=25)]
    dispatcher = Dispatcher(Optimised({0: (0, 0), 1: (1, 1), 2: (1, 1)}), replicas, 16, 64)
    views = [ConversationView(c, 0.0, 300, 300) for c in range(3)]
    for view in views:
        dispatcher.arrive(0.0, view)
    assert dispatcher.waiting() == 1
    assert dispatcher.lost(1.0, 0, [views[0], views[2]]) == [Grant("prefill", 0, 1)]
    assert dispatcher.waiting() == 1
    assert dispatcher.prefilled(2.0, 1) == [Grant("decode", 1, 1)]
    assert dispatcher.finished(3.0, 1) == [Grant("prefill", 2, 1)]


def test_a_conversation_that_no_pool_can_hold_is_refused() -> None:
    dispatcher = Dispatcher(ConServe(), [replica(0, "prefill", kv_blocks=999), replica(1, "decode", kv_blocks=25)], 16, 64)
    with pytest.raises(InfeasibleError, match="Conversation 3 needs 401 tokens of KV cache; the largest decoder holds 400"):
        dispatcher.arrive(0.0, ConversationView(3, 0.0, 401, 800))


def test_growth_beyond_the_reservation_is_booked_and_returned() -> None:
    dispatcher = Dispatcher(ConServe(extra_tokens=0), [replica(0, "mixed", kv_blocks=25)], 16, 64)
    dispatcher.arrive(0.0, ConversationView(0, 0.0, 100, 300))
    assert dispatcher.prefilled(1.0, 0) == [Grant("decode", 0, 0)]
    dispatcher.grow(0, 80)
    assert dispatcher.view(1.0).replicas[0].reserved_tokens == 100
    dispatcher.grow(0, 180)
    assert dispatcher.view(1.0).replicas[0].reserved_tokens == 180
    dispatcher.finished(2.0, 0)
    assert dispatcher.view(2.0).replicas[0].reserved_tokens == 0


def test_conversations_of_a_dead_replica_are_placed_again_before_later_ones() -> None:
    replicas = [replica(0, "prefill"), replica(1, "decode", kv_blocks=25), replica(2, "decode", kv_blocks=25)]
    dispatcher = Dispatcher(ConServe(extra_tokens=0), replicas, 16, 64)
    views = [ConversationView(c, 0.0, 300, 320) for c in range(3)]
    for view in views:
        dispatcher.arrive(0.0, view)
    assert dispatcher.prefilled(1.0, 0) == [Grant("decode", 0, 1)]
    assert dispatcher.prefilled(2.0, 1) == [Grant("decode", 1, 2)]
    assert dispatcher.prefilled(3.0, 2) == []
    grants = dispatcher.lost(4.0, 1, [ConversationView(0, 4.0, 310, 320)])
    assert grants == [Grant("prefill", 0, 0)]
    assert [view.index for view in dispatcher.view(4.0).replicas] == [0, 2]
    assert dispatcher.finished(5.0, 1) == [Grant("decode", 2, 2)]
    assert dispatcher.prefilled(6.0, 0) == []
    assert dispatcher.finished(7.0, 2) == [Grant("decode", 0, 2)]


def test_survivors_take_both_roles_when_nobody_is_left_to_prefill_or_to_decode() -> None:
    for roles, lost in ((["prefill", "decode", "decode"], (0,)), (["prefill", "prefill", "decode"], (2,))):
        dispatcher = Dispatcher(ConServe(extra_tokens=0), [replica(i, role) for i, role in enumerate(roles)], 16, 256)
        for index in lost:
            dispatcher.lost(0.0, index, [])
        assert {view.role for view in dispatcher.view(0.0).replicas} == {"mixed"}
    some = Dispatcher(ConServe(extra_tokens=0), [replica(0, "prefill"), replica(1, "decode"), replica(2, "decode")], 16, 256)
    some.lost(0.0, 1, [])
    assert [view.role for view in some.view(0.0).replicas] == ["prefill", "decode"]


def test_conversations_placed_again_go_before_those_that_wait_and_keep_no_reservation() -> None:
    dispatcher = Dispatcher(ConServe(extra_tokens=0), [replica(0, "prefill"), replica(1, "decode")], 16, 256)
    dispatcher.arrive(0.0, ConversationView(0, 0.0, 100, 200))
    assert dispatcher.prefilled(0.0, 0) == [Grant("decode", 0, 1)]
    assert dispatcher.view(0.0).replicas[1].reserved_tokens == 100
    assert dispatcher.again(1.0, [ConversationView(0, 0.0, 150, 200)]) == [Grant("prefill", 0, 0)]
    assert dispatcher.view(1.0).replicas[1].reserved_tokens == 0
    assert dispatcher.view(1.0).replicas[0].backlog_tokens == 150
    with pytest.raises(InfeasibleError, match="Conversation 0 needs 999,999 tokens of KV cache"):
        dispatcher.again(2.0, [ConversationView(0, 0.0, 999_999, 999_999)])
