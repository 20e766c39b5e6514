"""The conversations on a replica: one slot each, as a struct of arrays that grows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from optsched.batching.state import NO_CACHE, Decision, Requests
from optsched.runtime.cache import BlockTables
from optsched.runtime.messages import Receive, StartTurn

Array = np.ndarray
_FIRST_SLOTS, _FIRST_TOKENS = 64, 1024


class Slots:
    """What a replica knows of each conversation that it holds.

    Attributes
    ----------
    requests, decision
        The arrays that the batching policies read and write.
    tables
        The cache blocks of each slot.
    slot_of
        Slot by conversation.
    conversation, turn, number, output_tokens
        The current turn of each slot.
    last, stays, started
        Whether the conversation ends with it, whether its decoder is here, whether it was computed on.
    fresh
        Whether its next token is the first since its prompt came here from elsewhere.
    hidden
        Whether it is held as hidden cache whatever the policy says.

    Parameters
    ----------
    num_blocks
        Blocks of the cache pool.
    """

    def __init__(self, num_blocks: int) -> None:
        self.tables = BlockTables(_FIRST_SLOTS, num_blocks)
        self.requests, self.decision = Requests.empty(_FIRST_SLOTS), Decision.empty(_FIRST_SLOTS)
        self.slot_of: dict[int, int] = {}
        self.conversation, self.turn, self.number, self.output_tokens = (np.zeros(_FIRST_SLOTS, np.int64) for _ in range(4))
        self.last, self.stays, self.started, self.fresh, self.hidden = (np.zeros(_FIRST_SLOTS, bool) for _ in range(5))
        self._history = np.zeros((_FIRST_SLOTS, _FIRST_TOKENS), np.int64)
        self._known = np.zeros(_FIRST_SLOTS, np.int64)
        self._free = list(range(_FIRST_SLOTS - 1, -1, -1))

    def open(self, turn: StartTurn, prompt: Int64[Array, " p"]) -> int:
        """Give a new conversation a slot, and return it."""
        if not self._free:
            self._more_slots()
        slot = self._free.pop()
        self.slot_of[turn.conversation] = slot
        requests = self.requests
        requests.context[slot] = requests.new_tokens[slot] = requests.blocks[slot] = 0
        requests.cache[slot], requests.identity[slot] = NO_CACHE, turn.conversation
        self.conversation[slot] = turn.conversation
        self.stays[slot] = turn.stays
        self.hidden[slot] = turn.hidden
        self._known[slot] = 0
        self.next_turn(slot, turn, prompt)
        self.fresh[slot] = True
        return slot

    def next_turn(self, slot: int, turn: StartTurn, prompt: Int64[Array, " p"]) -> None:
        """Begin a turn on a slot: its prompt follows what is known, the last output token's cache still to be computed."""
        requests = self.requests
        requests.arrival_s[slot] = requests.last_token_s[slot] = turn.arrival_s
        requests.emitted[slot], requests.late[slot] = turn.emitted, 0
        requests.new_tokens[slot] += len(prompt)
        self.turn[slot], self.number[slot], self.output_tokens[slot] = turn.turn, turn.number, turn.output_tokens
        self.last[slot], self.started[slot], self.fresh[slot] = turn.last, False, False
        end = int(self._known[slot]) + len(prompt)
        self._widen(end + turn.output_tokens - turn.emitted)
        self._history[slot, self._known[slot] : end] = prompt
        self._known[slot] = end

    def adopt(self, handover: Receive, tokens: Int64[Array, " t"], blocks: int) -> int:
        """Give a conversation whose cache comes from elsewhere a slot, and blocks for it; return the slot.

        The slot of a copy that was kept here is used again.
        """
        turn, requests = handover.first, self.requests
        if handover.kept:
            slot = self.slot_of[turn.conversation]
            self._known[slot] = requests.new_tokens[slot] = 0
            self.next_turn(slot, turn, tokens)
        else:
            slot = self.open(turn, tokens)
        self.tables.grow(np.array([slot]), np.array([blocks]))
        requests.context[slot], requests.new_tokens[slot] = handover.context, len(tokens) - handover.context
        requests.blocks[slot], requests.cache[slot] = blocks, handover.cache
        requests.last_token_s[slot] = handover.token_s
        self.stays[slot] = turn.stays
        self.started[slot], self.fresh[slot] = turn.emitted > 0, turn.emitted == 0
        return slot

    def is_over(self, slot: int) -> bool:
        """Tell whether a slot's turn has all its output tokens."""
        return bool(self.requests.emitted[slot] == self.output_tokens[slot])

    def drop_cache(self, slot: int) -> None:
        """Take a slot's cache away: it starts again from context 0."""
        requests = self.requests
        self.tables.release(slot)
        requests.new_tokens[slot] += requests.context[slot]
        requests.context[slot] = requests.blocks[slot] = 0
        requests.cache[slot] = NO_CACHE

    def close(self, slot: int) -> None:
        """Free a slot and its blocks."""
        self.tables.release(slot)
        self.requests.blocks[slot] = 0
        del self.slot_of[int(self.conversation[slot])]
        self._free.append(slot)

    def known_tokens(self, slots: Int64[Array, " n"], start: Int64[Array, " n"], count: Int64[Array, " n"]) -> Int64[Array, " T"]:
        """Return `count` token ids of each slot from position `start`, one slot after the other."""
        row = np.repeat(slots, count)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        return np.asarray(self._history[row, np.repeat(start, count) + offset])

    def append(self, slots: Int64[Array, " n"], tokens: Int64[Array, " n"]) -> None:
        """Add one output token to each slot."""
        self._history[slots, self._known[slots]] = tokens
        self._known[slots] += 1

    def _widen(self, tokens: int) -> None:
        lacking = tokens - self._history.shape[1]
        if lacking > 0:
            self._history = np.pad(self._history, ((0, 0), (0, max(lacking, self._history.shape[1]))))

    def _more_slots(self) -> None:
        count = len(self.conversation)

        def doubled(array: Array) -> Array:
            return np.concatenate([array, np.zeros_like(array)])

        self.requests = Requests(*(doubled(array) for array in self.requests))
        self.decision = Decision(*(doubled(array) for array in self.decision))
        for name in ("conversation", "turn", "number", "output_tokens", "last", "stays", "started", "fresh", "hidden"):
            setattr(self, name, doubled(getattr(self, name)))
        self._history, self._known = doubled(self._history), doubled(self._known)
        self.tables.reserve(2 * count)
        self._free = list(range(2 * count - 1, count - 1, -1))
