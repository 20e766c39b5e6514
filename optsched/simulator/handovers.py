"""Which caches move to which replicas, who waits for room there, and who is called back so that nobody waits for ever.

A conversation that waits somewhere for room holds memory elsewhere, so circles of waiting are possible. They are kept open: a
turn leaves its home only where there is room for it (`Dispatcher.later_turn`); a turn that comes back and finds none lets go of
the copy that was kept for it; and where a replica evicts somebody who ran, or can serve nobody, visits that wait there, or are
to come back there, are computed at home. So what decoders do never depends on prefillers, and every turn visits once at most.
Where replicas compute first turns for each other, one that can serve nobody keeps the last cache that waits there for room
elsewhere: its conversation goes on where it is, and its memory is lent and taken like that of any other.
"""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np

from optsched.batching.state import HIDDEN
from optsched.domain.llm import Llm
from optsched.domain.log import Event
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.simulator import state as st
from optsched.simulator import turns
from optsched.simulator.coast import interrupt


class Handovers:
    """Hand-overs under way and waiting.

    Parameters
    ----------
    state, engine
        What the event loop knows.
    dispatcher
        The placement books.
    shape
        The llm, whose caches move.

    Attributes
    ----------
    waiting
        Per replica, the conversations that wait for room in its pool, first come, first served.
    transfers
        Conversation, source, target, start and end (s), and bytes of each.
    events
        What happened to caches.
    """

    def __init__(self, state: st.State, engine: st.Engine, dispatcher: Dispatcher, shape: Llm) -> None:
        self.state, self.engine, self.dispatcher, self.shape = state, engine, dispatcher, shape
        self.waiting: defaultdict[int, deque[int]] = defaultdict(deque)
        self.transfers: list[tuple[int, int, int, float, float, float]] = []
        self.events: list[Event] = []

    def line_up(self, slot: int, target: int) -> None:
        """Have a cache moved as soon as there is room for it."""
        self.waiting[target].append(slot)
        self.retry(target)

    def retry(self, target: int) -> None:
        """Start the hand-overs that found no room in a decoder's pool, first come, first served.

        Who waits there for room holds none: copies kept for what is still to come back are dropped.
        """
        waiting = self.waiting[target]
        while waiting:
            if self._hand_over(waiting[0], target):
                waiting.popleft()
                continue
            copies = [slot for slot in waiting if self.state.home[slot] == target]
            for slot in copies:
                turns.forget_copy(self.state, self.engine, slot)
            if not copies:
                break
        self.state.replicas.blocked[target] = len(waiting)

    def _hand_over(self, slot: int, target: int) -> bool:
        """Start a hand-over if there is room for it, and note it."""
        state = self.state
        hidden = state.requests.cache[slot] == HIDDEN
        per_token = self.shape.hidden_bytes_per_token if hidden else self.shape.kv_bytes_per_token
        if not turns.hand_over(state, self.engine, slot, target, per_token):
            return False
        source, size = int(state.replica[slot]), per_token * int(state.moved_tokens[slot])
        start_s, end_s = float(state.moved_s[slot]), float(state.receiving_until_s[target])
        self.transfers.append((slot, source, target, start_s, end_s, size))
        return True

    def room(self, replica: int) -> int:
        """Return how many tokens a replica's pool has room for now; none where others wait for it."""
        if self.waiting[replica]:
            return 0
        interrupt(self.state, self.engine, replica)
        return int(self.state.replicas.free_blocks[replica]) * self.engine.block_tokens

    def call_back(self, replica: int) -> None:
        """Have visits that wait there or were to come back there computed at home, now that a replica's memory is short."""
        state = self.state
        for slot in np.flatnonzero(state.away & (state.requests.emitted == 0) & (state.place == st.QUEUED)).tolist():
            home, visited = self.dispatcher.decoder_of(slot), int(state.replica[slot])
            running = state.replicas.queue[visited, : state.replicas.counts[visited, 0]]
            if home is not None and home != visited and replica in (home, visited) and slot not in running:
                self._bring_home(slot, home)

    def _bring_home(self, slot: int, home: int) -> None:
        """Have a turn that is away and not computed yet computed at home after all."""
        state, visited = self.state, int(self.state.replica[slot])
        kept = int(state.home_context[slot]) if state.home[slot] == home else 0
        if visited != home and state.requests.context[slot] > kept:
            self.events.append(Event(float(state.clock[0]), "dropped", slot, visited))
        turns.come_home(state, self.engine, slot, home)
        self.dispatcher.stayed(slot)
        self.retry(visited)

    def settle(self, replica: int) -> list[Grant]:
        """Have the last cache that waits on a replica for room elsewhere stay, if it may decode there; return what may start."""
        state, now_s = self.state, float(self.state.clock[0])
        held = np.flatnonzero((state.place == st.BLOCKED) & (state.replica == replica) & (state.requests.emitted > 0))
        if not len(held) or state.replicas.prefill_only[replica]:
            return []
        last = max(held.tolist(), key=lambda slot: (state.requests.last_token_s[slot], slot))
        if state.home[last] >= 0:
            turns.forget_copy(state, self.engine, last)
        grants = self.dispatcher.settled(now_s, last, replica)
        for target, waiting in self.waiting.items():
            if last in waiting:
                waiting.remove(last)
                self.retry(target)
        return grants

    def loosen(self) -> bool:
        """Let go of what turns that are away hold, now that nothing else can happen; tell whether there was any.

        Those who were not computed yet are computed at home after all; else the copies at their homes are dropped.
        """
        state, loosened = self.state, False
        for slot in np.flatnonzero(state.away & (state.requests.emitted == 0) & (state.place != st.DONE)).tolist():
            home = self.dispatcher.decoder_of(slot)
            if home is None or (home == state.replica[slot] and state.place[slot] == st.QUEUED):
                continue
            for queue in self.waiting.values():
                if slot in queue:
                    queue.remove(slot)
            self._bring_home(slot, home)
            loosened = True
        if not loosened:
            for slot in np.flatnonzero(state.home >= 0).tolist():
                turns.forget_copy(state, self.engine, slot)
                loosened = True
        for target in list(self.waiting):
            self.retry(target)
        return loosened
