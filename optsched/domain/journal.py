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
        Unless its cache was here: whether it decodes here.
    tokens, emitted
        Tokens that came with it, and how many of them, at their end, are output tokens of this turn.
    here
        Whether it goes on from a cache that was idle here; else all that was said came with it.
    """

    conversation: int
    turn: int
    arrival_s: float
    stays: bool
    tokens: int
    emitted: int
    here: bool


@dataclass(frozen=True, slots=True)
class TakenOut:
    """An idle conversation left the queue: its turn is computed elsewhere. What is cached of it stays until it is forgotten."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Stayed:
    """A prefilled conversation that was held back goes on here."""

    conversation: int


@dataclass(frozen=True, slots=True)
class RoomMade:
    """Blocks were set aside for a cache that another replica hands over.

    Attributes
    ----------
    conversation, turn, arrival_s
        Whose, and which turn arrived when.
    context, cache, blocks
        Cached tokens, their kind, and the blocks that they take, those of a copy that was kept here included.
    new_tokens, emitted
        Tokens to compute, and output tokens of the turn so far.
    stays
        Whether it decodes here.
    token_s
        When the last of them appeared; when the turn arrived if there is none.
    """

    conversation: int
    turn: int
    arrival_s: float
    context: int
    cache: int
    blocks: int
    new_tokens: int
    emitted: int
    stays: bool
    token_s: float


@dataclass(frozen=True, slots=True)
class Landed:
    """The cache arrived, and its conversation joined the queue."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A conversation's cache was freed: it left for another replica, or was dropped."""

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


Entry = TurnQueued | TakenOut | Stayed | RoomMade | Landed | Forgotten | Decided
