"""Adaptive placement: every replica may prefill and decode, and each conversation decides which roles they play just then."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from optsched.errors import SpecError
from optsched.placement.view import ConversationView, FleetView, ReplicaView, Route, Whole


@dataclass(frozen=True, slots=True)
class Adaptive(Whole):
    """Prefill where that delays least, decode where steps are short, and move in between only if it pays.

    Each pair of a prefiller p and a decoder d is charged with seconds, and the cheapest that has room is taken: p's queue; the
    first turn's prefill on p, once more for each conversation that decodes there and waits for it, times `interference`; the
    transfer, unless p is d; `expected_tokens` steps of d; and `start_s` if nobody decodes there yet. So replicas with few
    decodes do the prefills of others while that costs less than queueing there, and all do their own where it does not: roles
    follow the load. Where nothing has room the conversation waits, and is bound late. Where it goes on is decided again when
    a prefill elsewhere has ended.

    Parameters
    ----------
    extra_tokens
        Tokens reserved on the decoder beyond the first turn.
    interference
        Weight of the time by which a prefill delays those who decode on its replica. 0: they do not count.
    expected_tokens
        Output tokens that a conversation is expected to have; lengths themselves are not known.
    start_s
        What it costs to decode on a replica where nobody does: its steps read the weights for one conversation alone. So decodes
        gather on few replicas while the load is low, and the others prefill or idle.
    longest_step_s
        A replica where others decode takes no conversation while a step of them takes longer; 0: no limit. It holds the time
        between tokens.
    most_backlog_s
        A replica takes no prefill while its queue takes longer; 0: no limit. A conversation is then bound to whichever replica is
        ready first.
    """

    extra_tokens: int = 600
    interference: float = 1.0
    expected_tokens: int = 400
    start_s: float = 0.5
    longest_step_s: float = 0.0
    most_backlog_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is negative or not finite."""
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SpecError(f"{value}: must not be negative; give 0 or more", field=name)

    @property
    def foresight(self) -> bool:
        """It reads no length that is not known."""
        return False

    @property
    def timed(self) -> bool:
        """It asks how long prefills, transfers and steps take."""
        return True

    def reservation(self, conversation: ConversationView) -> int:
        """Return the tokens of KV cache to reserve on the decoder."""
        return conversation.first_turn_tokens + self.extra_tokens

    def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
        """Choose the cheapest pair; the decoder is named only if it is the prefiller itself. None: wait."""
        ready = [replica for replica in fleet.prefillers() if not self.most_backlog_s or replica.backlog_s <= self.most_backlog_s]
        apart = self._best(fleet.decoders(), conversation)
        best_s, best = math.inf, None
        for replica in ready:
            index = replica.index
            own_s = conversation.prefill_s[index]
            start_s = replica.backlog_s + own_s * (1 + self.interference * replica.conversations)
            if self._has_room(replica, conversation) and (cost_s := start_s + self._decode_s(replica)) < best_s:
                best_s, best = cost_s, Route(index, index)
            if apart is not None and apart.index != index:
                cost_s = start_s + conversation.move_s[index] + self._decode_s(apart)
                if cost_s < best_s:
                    best_s, best = cost_s, Route(index)
        return best

    def decode(self, conversation: ConversationView, fleet: FleetView, prefill: int) -> int | None:
        """Choose the decoder of shortest steps that has room, the prefiller itself if the transfer is not worth it."""
        chosen = self._best(fleet.decoders(), conversation)
        if chosen is None:
            return None
        home = next((replica for replica in fleet.decoders() if replica.index == prefill), None)
        if home is not None and self._has_room(home, conversation):
            away_s = conversation.move_s[prefill] + self._decode_s(chosen)
            return prefill if self._decode_s(home) <= away_s else chosen.index
        return chosen.index

    def _best(self, decoders: Iterable[ReplicaView], conversation: ConversationView) -> ReplicaView | None:
        able = (replica for replica in decoders if self._has_room(replica, conversation))
        return min(able, key=self._decode_rank, default=None)

    def _decode_rank(self, replica: ReplicaView) -> tuple[float, int, int]:
        return self._decode_s(replica), -replica.free_tokens, replica.index

    def _decode_s(self, replica: ReplicaView) -> float:
        return self.expected_tokens * replica.step_s + (0.0 if replica.conversations else self.start_s)

    def _has_room(self, replica: ReplicaView, conversation: ConversationView) -> bool:
        slow = self.longest_step_s and replica.conversations and replica.step_s > self.longest_step_s
        if slow or replica.role == "prefill":
            return False
        return replica.fits(conversation.first_turn_tokens, self.extra_tokens)
