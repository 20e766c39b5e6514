"""ConServe: the first turn on a prefiller, one transfer, the rest pinned to the decoder of most free KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.errors import SpecError
from optsched.placement.policies.choice import least_backlogged, most_free
from optsched.placement.view import ConversationView, FleetView, Pinned, Route


@dataclass(frozen=True, slots=True)
class ConServe(Pinned):
    """Prefill on the least backlogged prefiller, then decode where most KV cache is free; wait while it fits nowhere.

    Parameters
    ----------
    extra_tokens
        Tokens reserved on the decoder beyond the first turn. On the trace of arXiv 2606.01839 600 are too few under load: at
        1.25 conversations/s and more decoders preempt, and p95 TTFET is twice the oracle's (``paper_repro``).
    oracle
        Reserve the conversation's peak context instead, as the headline runs of the paper's artifact did; nobody knows
        it in advance.

    References
    ----------
    .. [1] arXiv 2606.01839, "ConServe". With several prefillers the paper's rule is taken to be the least backlog.
    """

    extra_tokens: int = 600
    oracle: bool = False

    def __post_init__(self) -> None:
        """Refuse a negative reservation."""
        if self.extra_tokens < 0:
            raise SpecError(f"{self.extra_tokens}: must not be negative; give 0 or more tokens", field="extra_tokens")

    @property
    def foresight(self) -> bool:
        """Whether the policy reads lengths that nobody knows in advance."""
        return self.oracle

    def reservation(self, conversation: ConversationView) -> int:
        """Return the tokens of KV cache to reserve on the decoder."""
        return sum(self._need(conversation))

    def _need(self, conversation: ConversationView) -> tuple[int, int]:
        """Return the tokens needed for certain, and the headroom."""
        return (conversation.peak_tokens, 0) if self.oracle else (conversation.first_turn_tokens, self.extra_tokens)

    def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
        """Choose the prefiller whose queue is shortest in seconds; the decoder is chosen later."""
        chosen = least_backlogged(fleet.prefillers())
        return None if chosen is None else Route(chosen.index)

    def decode(self, conversation: ConversationView, fleet: FleetView, prefill: int) -> int | None:
        """Choose the decoder of most free tokens that fits; None: wait."""
        chosen = most_free(fleet.decoders(), *self._need(conversation))
        return None if chosen is None else chosen.index
