"""A binary heap of timed events in flat arrays, for compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import lean

Array = np.ndarray
STEP_END, TRANSFER_END, TURN_READY, ARRIVAL = 0, 1, 2, 3


class Heap(NamedTuple):
    """Events ordered by time, then kind, then order of insertion (ends of steps: of their replicas).

    Attributes
    ----------
    time_s, kind, subject, order
        Per event: when, what, of which replica or conversation, and a serial number.
    size
        ``size[0]`` events are in the heap; ``size[1]`` is the next serial number.
    """

    time_s: Float64[Array, " capacity"]
    kind: Int64[Array, " capacity"]
    subject: Int64[Array, " capacity"]
    order: Int64[Array, " capacity"]
    size: Int64[Array, " 2"]

    @classmethod
    def empty(cls, capacity: int) -> Heap:
        """Return an empty heap for so many events."""
        kind, subject, order = np.zeros((3, capacity), np.int64)
        return cls(np.zeros(capacity), kind, subject, order, np.zeros(2, np.int64))


@lean
def _before(heap: Heap, a: int, b: int) -> bool:
    if heap.time_s[a] != heap.time_s[b]:
        return bool(heap.time_s[a] < heap.time_s[b])
    if heap.kind[a] != heap.kind[b]:
        return bool(heap.kind[a] < heap.kind[b])
    if heap.kind[a] == STEP_END and heap.subject[a] != heap.subject[b]:
        return bool(heap.subject[a] < heap.subject[b])
    return bool(heap.order[a] < heap.order[b])


@lean
def _swap(heap: Heap, a: int, b: int) -> None:
    heap.time_s[a], heap.time_s[b] = heap.time_s[b], heap.time_s[a]
    heap.kind[a], heap.kind[b] = heap.kind[b], heap.kind[a]
    heap.subject[a], heap.subject[b] = heap.subject[b], heap.subject[a]
    heap.order[a], heap.order[b] = heap.order[b], heap.order[a]


@lean
def push(heap: Heap, time_s: float, kind: int, subject: int) -> None:
    """Add an event."""
    child = heap.size[0]
    heap.time_s[child], heap.kind[child], heap.subject[child] = time_s, kind, subject
    heap.order[child] = heap.size[1]
    heap.size[0] += 1
    heap.size[1] += 1
    while child > 0:
        parent = (child - 1) // 2
        if not _before(heap, child, parent):
            break
        _swap(heap, child, parent)
        child = parent


@lean
def drop_first(heap: Heap) -> None:
    """Remove the earliest event, which is at index 0."""
    heap.size[0] -= 1
    last = heap.size[0]
    _swap(heap, 0, last)
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= last:
            break
        if child + 1 < last and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, parent):
            break
        _swap(heap, parent, child)
        parent = child
