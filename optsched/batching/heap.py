"""A binary heap of the requests that may deviate, the cheapest deviation first: only as much order as is needed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import lean

Array = np.ndarray


@lean
def _sift_down(loss: Float64[Array, " n"], member: Int64[Array, " n"], at: int, size: int) -> None:
    moved, who = loss[at], member[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and loss[child + 1] < loss[child]:
            child += 1
        if loss[child] >= moved:
            break
        loss[at], member[at] = loss[child], member[child]
        at = child
    loss[at], member[at] = moved, who


@lean
def heapify(loss: Float64[Array, " n"], member: Int64[Array, " n"], size: int) -> None:
    """Order the first `size` entries of `loss` and `member` as a heap, in O(size)."""
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(loss, member, at, size)


@lean
def pop(loss: Float64[Array, " n"], member: Int64[Array, " n"], size: int) -> int:
    """Remove the request with the smallest loss from the heap and return it."""
    first = member[0]
    loss[0], member[0] = loss[size - 1], member[size - 1]
    _sift_down(loss, member, 0, size - 1)
    return int(first)
