"""Collocated serving: a conversation is prefilled and decoded on one mixed replica."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.errors import SpecError
from optsched.placement.policies.choice import most_free
from optsched.placement.view import ConversationView, FleetView, Pinned, Route


@dataclass(frozen=True, slots=True)
class Collocated(Pinned):
    """Send each conversation to the mixed replica of most free KV cache; it stays there; it waits while it fits in none.

    Parameters
    ----------
    oracle
        Reserve the conversation's peak context, which nobody knows in advance; this is how the baseline was run in the
        artifact of arXiv 2606.01839. False: reserve its first turn and `extra_tokens`.
    extra_tokens
        Tokens reserved beyond the first turn when `oracle` is False.
    admission
        False: reserve nothing and never wait here; the replica of fewest conversations takes the next one at once, and its
        batching policy alone decides whom to serve, as behind an ordinary load balancer.
    """

    oracle: bool = True
    extra_tokens: int = 600
    admission: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative reservation."""
        if self.extra_tokens < 0:
            raise SpecError(f"{self.extra_tokens}: must not be negative; give 0 or more tokens", field="extra_tokens")

    @property
    def foresight(self) -> bool:
        """Whether the policy reads lengths that nobody knows in advance."""
        return self.oracle and self.admission

    def reservation(self, conversation: ConversationView) -> int:
        """Return the tokens of KV cache to reserve."""
        return sum(self._need(conversation))

    def _need(self, conversation: ConversationView) -> tuple[int, int]:
        """Return the tokens needed for certain, and the headroom."""
        if not self.admission:
            return (0, 0)
        return (conversation.peak_tokens, 0) if self.oracle else (conversation.first_turn_tokens, self.extra_tokens)

    def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
        """Choose the mixed replica of most free tokens that fits, for everything; None: wait."""
        mixed = [replica for replica in fleet.replicas if replica.role == "mixed"]
        if not self.admission:
            fewest = min(mixed, key=lambda replica: (replica.conversations, replica.index), default=None)
            return None if fewest is None else Route(fewest.index, fewest.index)
        chosen = most_free(mixed, *self._need(conversation))
        return None if chosen is None else Route(chosen.index, chosen.index)

    def decode(self, conversation: ConversationView, fleet: FleetView, prefill: int) -> int | None:
        """Stay where the first turn was prefilled."""
        return prefill
