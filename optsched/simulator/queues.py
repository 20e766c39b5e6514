"""The replicas' queues, and what Python is told."""

from __future__ import annotations

from optsched.compiled import lean
from optsched.simulator.state import QUEUED, Outbox, Replicas, State


@lean
def tell(outbox: Outbox, kind: int, subject: int) -> None:
    """Ask Python about something that cannot wait."""
    end = outbox.size[0]
    outbox.kind[end], outbox.subject[end] = kind, subject
    outbox.size[0] = end + 1
    outbox.questions[0] += 1


@lean
def note(outbox: Outbox, kind: int, slot: int, replica: int, time_s: float) -> None:
    """Have Python note something whenever it is told the next time."""
    end = outbox.size[0]
    outbox.kind[end], outbox.subject[end], outbox.replica[end], outbox.time_s[end] = kind, slot, replica, time_s
    outbox.size[0] = end + 1


@lean
def insert(replicas: Replicas, replica: int, position: int, slot: int, segment: int) -> None:
    """Put a slot into a replica's queue, at a position of one of its segments."""
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    for index in range(counts[0] + counts[1] + counts[2], position, -1):
        queue[index] = queue[index - 1]
    queue[position] = slot
    counts[segment] += 1
    replicas.refused[replica] = False


@lean
def remove(replicas: Replicas, replica: int, slot: int) -> None:
    """Take a slot out of a replica's queue."""
    queue, counts = replicas.queue[replica], replicas.counts[replica]
    total = counts[0] + counts[1] + counts[2]
    position = 0
    while queue[position] != slot:
        position += 1
    segment = 0 if position < counts[0] else (1 if position < counts[0] + counts[1] else 2)
    for index in range(position, total - 1):
        queue[index] = queue[index + 1]
    counts[segment] -= 1
    replicas.refused[replica] = False


@lean
def enqueue(state: State, slot: int, replica: int) -> None:
    """Put a slot at the end of a replica's waiting segment."""
    counts, refused = state.replicas.counts[replica], state.replicas.refused[replica]
    insert(state.replicas, replica, counts[0] + counts[1], slot, 1)
    # Behind somebody who was refused, whom a policy of this kind serves first.
    state.replicas.refused[replica] = refused and state.replicas.first_come[replica] and counts[1] > 1
    state.replica[slot] = replica
    state.place[slot] = QUEUED
    state.replicas.woken[replica] = True
