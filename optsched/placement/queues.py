"""First-in-first-out queues and a calendar of events, as arrays that compiled code fills in place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import kernel, lean

Array = np.ndarray
NOBODY = -1


class Queues(NamedTuple):
    """First-in-first-out queues of conversations, one per replica, as linked lists."""

    head: Int64[Array, " R"]
    tail: Int64[Array, " R"]
    after: Int64[Array, " C"]


class Calendar(NamedTuple):
    """When each conversation's next event is, at most one each, as a binary heap.

    Attributes
    ----------
    time_s
        Per conversation, where it is in the heap.
    heap
        Conversations, the earliest first; ties by index.
    size
        Its length, the only entry.
    """

    time_s: Float64[Array, " C"]
    heap: Int64[Array, " C"]
    size: Int64[Array, " 1"]


@kernel
def empty_queues(conversations: int, replicas: int) -> Queues:
    """Return queues in which nobody waits."""
    return Queues(np.full(replicas, NOBODY), np.full(replicas, NOBODY), np.full(conversations, NOBODY))


@kernel
def empty_calendar(conversations: int) -> Calendar:
    """Return a calendar without events."""
    return Calendar(np.zeros(conversations), np.zeros(conversations, np.int64), np.zeros(1, np.int64))


@lean
def push(queues: Queues, replica: int, conversation: int) -> None:
    """Append a conversation to a replica's queue."""
    queues.after[conversation] = NOBODY
    if queues.head[replica] == NOBODY:
        queues.head[replica] = conversation
    else:
        queues.after[queues.tail[replica]] = conversation
    queues.tail[replica] = conversation


@lean
def pop(queues: Queues, replica: int) -> None:
    """Remove the head of a replica's queue."""
    queues.head[replica] = queues.after[queues.head[replica]]


@lean
def _before(calendar: Calendar, a: int, b: int) -> bool:
    return bool(calendar.time_s[a] < calendar.time_s[b] or (calendar.time_s[a] == calendar.time_s[b] and a < b))


@lean
def note(calendar: Calendar, time_s: float, conversation: int) -> None:
    """Put the next event of a conversation that has none into the calendar."""
    calendar.time_s[conversation] = time_s
    slot = calendar.size[0]
    calendar.size[0] += 1
    while slot > 0:
        above = (slot - 1) // 2
        if not _before(calendar, conversation, calendar.heap[above]):
            break
        calendar.heap[slot] = calendar.heap[above]
        slot = above
    calendar.heap[slot] = conversation


@lean
def strike(calendar: Calendar) -> int:
    """Remove the earliest event and return its conversation."""
    first = calendar.heap[0]
    calendar.size[0] -= 1
    size = calendar.size[0]
    last, slot = calendar.heap[size], 0
    while 2 * slot + 1 < size:
        below = 2 * slot + 1
        if below + 1 < size and _before(calendar, calendar.heap[below + 1], calendar.heap[below]):
            below += 1
        if not _before(calendar, calendar.heap[below], last):
            break
        calendar.heap[slot] = calendar.heap[below]
        slot = below
    if size > 0:
        calendar.heap[slot] = last
    return int(first)


@lean
def next_s(calendar: Calendar) -> float:
    """Return the time of the earliest event; infinite if there is none."""
    return float(calendar.time_s[calendar.heap[0]]) if calendar.size[0] > 0 else np.inf


@lean
def take_due(calendar: Calendar, due: Int64[Array, " C"], limit_s: float, now_s: float) -> tuple[int, float]:
    """Move the conversations whose events are due into `due`, by their index; return their number and the latest time."""
    count = 0
    while next_s(calendar) <= limit_s:
        conversation = strike(calendar)
        now_s = max(now_s, calendar.time_s[conversation])
        slot = count
        while slot > 0 and due[slot - 1] > conversation:
            due[slot] = due[slot - 1]
            slot -= 1
        due[slot] = conversation
        count += 1
    return count, now_s
