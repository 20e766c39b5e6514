"""Take a worker's decisions again, in the simulator and on the worker's own clock.

Simulator and workers share the policies, but each applies decisions and keeps books by its own code. Given the same events at
the same times they must decide alike, step by step, wherever turns are computed and caches move; replicas that are lost, and
what is computed again for them, are not replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optsched.batching.policies.dispatch import policy_address
from optsched.domain.journal import Decided, Entry, Forgotten, Landed, RoomMade, Stayed, TakenOut, TurnQueued
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.simulator import state as st
from optsched.simulator import turns
from optsched.simulator.layout import engine_of, initial_state
from optsched.simulator.prefixes import release
from optsched.simulator.queues import enqueue, remove
from optsched.simulator.steps import start_step
from optsched.simulator.tokens import end_step


def replay(plan: Plan, workload: Workload, replica: int, journal: Sequence[Entry]) -> list[Decided]:
    """Return what the simulator decides where a worker's journal says that the policy was asked.

    Parameters
    ----------
    plan, workload
        What the worker executed.
    replica
        Index of its replica in the plan.
    journal
        What happened there, in order. Of its decisions only the times are used.

    Returns
    -------
    list[Decided]
        One for each of the journal's.
    """
    books = _Books(plan, workload, replica)
    decided: list[Decided] = []
    for entry in journal:
        if isinstance(entry, Decided):
            decided.append(books.decide(entry.now_s, entry.end_s))
        else:
            books.follow(entry)
    return decided


class _Books:
    """The simulator's state of one replica, moved by events from outside instead of those of its heap."""

    def __init__(self, plan: Plan, workload: Workload, replica: int) -> None:
        self.workload, self.replica = workload, replica
        self.state = initial_state(plan, workload, 0, record_tokens=True)
        self.engine = engine_of(
            plan, workload, None, per_turn=False, coasts=False, record_steps=False, record_tokens=True
        )  # fmt: skip
        self.policy = policy_address(plan.batching.policy)

    def follow(self, entry: Entry) -> None:
        """Change the books by an event."""
        state, replica = self.state, self.replica
        if isinstance(entry, TurnQueued):
            self._queue(entry)
        elif isinstance(entry, TakenOut):
            remove(state.replicas, replica, entry.conversation)
        elif isinstance(entry, Stayed):
            turns.stay(state, self.engine, entry.conversation)
        elif isinstance(entry, RoomMade):
            self._make_room(entry)
        elif isinstance(entry, Landed):
            slot = entry.conversation
            if state.requests.emitted[slot] == self.workload.output_tokens[state.turn[slot]]:
                turns.become_idle(state, slot, replica)
            else:
                enqueue(state, slot, replica)
        elif isinstance(entry, Forgotten):
            if entry.conversation in state.replicas.queue[replica, : state.replicas.counts[replica].sum()]:
                remove(state.replicas, replica, entry.conversation)
            release(state, entry.conversation, replica)

    def _queue(self, entry: TurnQueued) -> None:
        """Queue a turn that goes on from what is here, or of which everything is computed here."""
        requests, slot = self.state.requests, entry.conversation
        if entry.here:
            turns.next_turn(self.state, slot, self.engine)
        else:
            self._begin(entry)
            requests.context[slot], requests.new_tokens[slot] = 0, entry.tokens
            requests.late[slot] = 0
            enqueue(self.state, slot, self.replica)
        requests.arrival_s[slot] = requests.last_token_s[slot] = entry.arrival_s

    def _make_room(self, entry: RoomMade) -> None:
        """Let a conversation be as the replica left it that hands its cache over; a copy that was kept counts."""
        requests, slot = self.state.requests, entry.conversation
        self._begin(entry)
        self.state.replicas.free_blocks[self.replica] -= entry.blocks - requests.blocks[slot]
        requests.arrival_s[slot], requests.last_token_s[slot] = entry.arrival_s, entry.token_s
        requests.context[slot], requests.new_tokens[slot] = entry.context, entry.new_tokens
        requests.cache[slot], requests.blocks[slot] = entry.cache, entry.blocks
        requests.late[slot] = entry.emitted > 0 and entry.token_s - entry.arrival_s >= self.engine.ttft_slo_s
        self.state.turns.end_s[entry.turn] = entry.token_s

    def _begin(self, entry: TurnQueued | RoomMade) -> None:
        """Note which turn came here from elsewhere, and whether its first token is reported to the controller."""
        state, slot = self.state, entry.conversation
        state.turn[slot], state.requests.emitted[slot] = entry.turn, entry.emitted
        state.stays[slot], state.away[slot] = entry.stays, entry.emitted == 0

    def decide(self, now_s: float, end_s: float) -> Decided:
        """Have the replica take a step that ends when the worker's did."""
        state, replica = self.state, self.replica
        free_blocks = int(state.replicas.free_blocks[replica])
        state.heap.size[0] = state.outbox.size[0] = state.outbox.questions[0] = 0
        state.clock[0] = now_s
        start_step(state, self.engine, self.policy, replica)
        told = range(int(state.outbox.size[0]))
        evicted = tuple(int(state.outbox.subject[i]) for i in told if state.outbox.kind[i] in (st.PREEMPTED, st.EVICTED))
        scheduled: tuple[tuple[int, int, int], ...] = ()
        if state.replicas.busy[replica]:
            slots = state.replicas.scheduled[replica, : state.replicas.num_scheduled[replica]]
            columns = (slots, state.decision.tokens[slots], state.requests.cache[slots])
            scheduled = tuple((int(slot), int(tokens), int(cache)) for slot, tokens, cache in np.transpose(columns))
            state.clock[0] = end_s
            state.heap.size[0] = 0
            end_step(state, self.engine, replica)
        return Decided(now_s, end_s, free_blocks, scheduled, evicted)
