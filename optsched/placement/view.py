"""What a placement policy may see, and the interface it fulfils; simulator and runtime call the same policies.

A policy is a pure function of what is observable: frozen parameters and two questions. `prefill` is asked when a
conversation arrives (and again, while it waits, whenever something was released); it may already name the decoder.
`decode` is asked when a prefill ended and no decoder was named. None means: wait. Later turns stay where the
conversation's cache is, unless the policy is asked about them too (`PlacementPolicy.per_turn`) and sends them away.
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
    step_s
        Duration of a step that decodes all of them on the reserved cache; 0 unless the policy asks (`PlacementPolicy.timed`).
    """

    index: int
    role: Role
    kv_tokens: int
    reserved_tokens: int
    backlog_tokens: int
    backlog_s: float
    conversations: int
    step_s: float = 0.0

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
    prefill_s, move_s
        Per replica of the plan: time that its first turn's prefill takes there, alone, and that the cache takes from there to
        another decoder, on the fastest link (infinite without one). Empty unless the policy asks (`PlacementPolicy.timed`).
    """

    index: int
    arrival_s: float
    first_turn_tokens: int
    peak_tokens: int
    prefill_s: tuple[float, ...] = ()
    move_s: tuple[float, ...] = ()


class Route(NamedTuple):
    """Where a first turn is prefilled, and where its conversation decodes if that is decided already."""

    prefill: int
    decode: int | None = None


@dataclass(frozen=True, slots=True)
class TurnView:
    """What is observable of a later turn when it arrives.

    Attributes
    ----------
    conversation
        The conversation.
    number
        Which of its turns it is; 1 follows the first.
    home
        Index of the replica that holds the cache of what was said so far.
    context_tokens, new_tokens
        Tokens in that cache, and those of the prompt that are not.
    move_s, append_s, return_s
        Per replica of the plan: time to carry the cache there; to compute the new tokens there, alone; and to carry what they
        add back. Infinite where no link leads; at home nothing has to be carried.
    output_tokens
        Foresight: tokens that the turn will put out. Policies that read it say so (`PlacementPolicy.foresight`).
    """

    conversation: ConversationView
    number: int
    home: int
    context_tokens: int
    new_tokens: int
    move_s: tuple[float, ...]
    append_s: tuple[float, ...]
    return_s: tuple[float, ...]
    output_tokens: int


class Away(NamedTuple):
    """Where a later turn's prompt is computed, if not where its cache is.

    Attributes
    ----------
    prefill
        The replica that computes it.
    decode
        Where the conversation goes on: its home, which then keeps its copy of the cache, or `prefill` itself; None: the policy
        is asked again when the prompt is computed.
    reuse
        Whether the cache goes along; otherwise it is dropped, and everything said so far computed again.
    """

    prefill: int
    decode: int | None
    reuse: bool


class PlacementPolicy(Protocol):
    """A placement policy; implementations are frozen dataclasses whose fields are the plan's ``placement.parameters``."""

    @property
    def foresight(self) -> bool:
        """Whether the policy reads lengths that nobody knows in advance."""
        ...

    @property
    def per_turn(self) -> bool:
        """Whether later turns may leave the replica that holds their cache."""
        ...

    @property
    def timed(self) -> bool:
        """Whether the policy asks how long steps, prefills and transfers take."""
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

    def queue(self, conversation: ConversationView) -> int:
        """Name the queue that the conversation stands in where it has to wait; who waits holds up those behind it there."""
        ...

    def later_turn(self, turn: TurnView, fleet: FleetView) -> Away | None:
        """Choose where a later turn's prompt is computed; None: where its cache is."""
        ...


class Whole:
    """A policy that places whole conversations: their later turns stay where their cache is."""

    __slots__ = ()

    @property
    def per_turn(self) -> bool:
        """Later turns never leave."""
        return False

    def queue(self, conversation: ConversationView) -> int:
        """Stand in the one queue of all."""
        return 0

    def later_turn(self, turn: TurnView, fleet: FleetView) -> Away | None:
        """Stay."""
        return None


class Pinned(Whole):
    """A policy of that kind that looks at tokens, not at times."""

    __slots__ = ()

    @property
    def timed(self) -> bool:
        """It asks for no times."""
        return False
