"""What one worker was told and what its batching policy decided, in order: enough to have the same decisions taken again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnQueued:
    """A turn joined the waiting.

    Attributes
    ----------
    conversation, turn
        Indices in the workload.
    arrival_s
        When it arrived at the server, which may be earlier.
    stays
        Of a first turn: whether it decodes here.
    """

    conversation: int
    turn: int
    arrival_s: float
    stays: bool


@dataclass(frozen=True, slots=True)
class Stayed:
    """A prefilled conversation that was held back goes on here."""

    conversation: int


@dataclass(frozen=True, slots=True)
class RoomMade:
    """Blocks were set aside for a cache that another replica hands over.

    Attributes
    ----------
    conversation, arrival_s
        Whose, and when its first turn arrived.
    context, cache, blocks
        Cached tokens, their kind, and the blocks that they take.
    token_s
        When its first token appeared.
    """

    conversation: int
    arrival_s: float
    context: int
    cache: int
    blocks: int
    token_s: float


@dataclass(frozen=True, slots=True)
class Landed:
    """The cache arrived, and its conversation joined the queue."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A conversation's cache was freed after it left for another replica."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The batching policy was asked.

    Attributes
    ----------
    now_s, end_s
        When, and when the tokens of the step that followed were out; both alike where nothing was scheduled.
    free_blocks
        What the policy saw of the pool.
    scheduled
        Conversation, tokens to compute and kind of cache, in the order of the queue.
    evicted
        Conversations whose caches were dropped.
    """

    now_s: float
    end_s: float
    free_blocks: int
    scheduled: tuple[tuple[int, int, int], ...]
    evicted: tuple[int, ...]


Entry = TurnQueued | Stayed | RoomMade | Landed | Forgotten | Decided
