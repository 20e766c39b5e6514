"""What a placement policy may see, and the interface it fulfils; simulator and runtime call the same policies.

A policy is a pure function of what is observable: frozen parameters and two questions. `prefill` is asked when a
conversation arrives (and again, while it waits, whenever something was released); it may already name the decoder.
`decode` is asked when the first turn's prefill ended and no decoder was named. None means: wait. Later turns stay where
the conversation's cache is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from optsched.domain.scenario import Role


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What is observable of one replica.

    Attributes
    ----------
    index, role
        Its index in the plan, and its role.
    kv_tokens
        Tokens of KV cache that its pool holds.
    reserved_tokens
        Tokens reserved by the conversations placed on it.
    backlog_tokens, backlog_s
        First-turn prompt tokens placed on it and not prefilled yet, and the time their prefills take alone.
    conversations
        Conversations that decode on it and have not ended.
    """

    index: int
    role: Role
    kv_tokens: int
    reserved_tokens: int
    backlog_tokens: int
    backlog_s: float
    conversations: int

    @property
    def free_tokens(self) -> int:
        """Tokens of KV cache that nothing has reserved."""
        return self.kv_tokens - self.reserved_tokens

    def fits(self, needed_tokens: int, headroom_tokens: int = 0) -> bool:
        """Tell whether a need fits with as much of the headroom as the whole pool could ever give."""
        return self.free_tokens >= max(needed_tokens, min(needed_tokens + headroom_tokens, self.kv_tokens))


@dataclass(frozen=True, slots=True)
class FleetView:
    """The replicas at one moment."""

    now_s: float
    replicas: tuple[ReplicaView, ...]

    def prefillers(self) -> list[ReplicaView]:
        """Return the replicas that may prefill a first turn for another."""
        return [replica for replica in self.replicas if replica.role != "decode"]

    def decoders(self) -> list[ReplicaView]:
        """Return the replicas that may decode."""
        return [replica for replica in self.replicas if replica.role != "prefill"]


@dataclass(frozen=True, slots=True)
class ConversationView:
    """What is observable of a conversation when it is placed.

    Attributes
    ----------
    index
        Its index in the workload.
    arrival_s
        When it arrived.
    first_turn_tokens
        Prompt tokens of its first turn.
    peak_tokens
        Foresight: tokens of its context at its very end. Policies that read it say so (`PlacementPolicy.foresight`).
    """

    index: int
    arrival_s: float
    first_turn_tokens: int
    peak_tokens: int


class Route(NamedTuple):
    """Where a first turn is prefilled, and where its conversation decodes if that is decided already."""

    prefill: int
    decode: int | None = None


class PlacementPolicy(Protocol):
    """A placement policy; implementations are frozen dataclasses whose fields are the plan's ``placement.parameters``."""

    @property
    def foresight(self) -> bool:
        """Whether the policy reads lengths that nobody knows in advance."""
        ...

    def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
        """Choose where the first turn is prefilled; None: wait."""
        ...

    def decode(self, conversation: ConversationView, fleet: FleetView, prefill: int) -> int | None:
        """Choose the decoder once the first turn is prefilled; None: wait."""
        ...

    def reservation(self, conversation: ConversationView) -> int:
        """Return the tokens of KV cache to reserve on the decoder."""
        ...
