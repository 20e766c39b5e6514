"""Buffers of the exact solvers: allocated once, used by every solve.

They lie in one array, whose head holds their sizes and what a paused search needs to go on: handing one array to compiled
code takes less time than handing over two dozen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.compiled import inlined, kernel, lean

Array = np.ndarray

HEAD = 40  # words before the buffers: requests, states, nodes, and a search that has been paused
SPAN, COPIES = 4096, 4  # changes of blocks and how many deviations of each the corner relaxation keeps


class Workspace(NamedTuple):
    """Room for `n` requests, `s` states and `t` nodes of the trail.

    Attributes
    ----------
    gain, penalty
        Pending times and hidden penalties as multiples of the quantum.
    start
        The option of each request in the solution of the relaxation, rounded down.
    density, weight, element
        Marginal gains: gain per block, blocks, and ``4 * request + step``.
    loss, member
        A heap of the requests that may deviate, by what their cheapest deviation loses.
    blocks, value, tie, node
        Two generations of states; see `optsched.batching.core`.
    parent, request, option
        The deviation that led to a node, and the node before it.
    normal, level, held
        Three hyperplanes ``normal . prices = level``: the request (-1: none) and the two options it is indifferent between.
    rest, place, queue
        By units left (`SPAN` more): the least loss at which they can be used up, and a queue; see
        `optsched.batching.corner`.
    copies, least, deviation
        By change of blocks (`SPAN` more): how many deviations are kept, their losses, and ``4 * request + option``.
    """

    gain: Int64[Array, " n"]
    penalty: Int64[Array, " n"]
    start: Int8[Array, " n"]
    density: Float64[Array, " e"]
    weight: Float64[Array, " e"]
    element: Int64[Array, " e"]
    loss: Float64[Array, " n"]
    member: Int64[Array, " n"]
    blocks: Int64[Array, "2 s"]
    value: Int64[Array, "2 s"]
    tie: Int64[Array, "2 s"]
    node: Int64[Array, "2 s"]
    parent: Int64[Array, " t"]
    request: Int64[Array, " t"]
    option: Int8[Array, " t"]
    normal: Float64[Array, "3 3"]
    level: Float64[Array, " 3"]
    held: Int64[Array, "3 3"]
    rest: Float64[Array, " w"]
    place: Int64[Array, " w"]
    queue: Int64[Array, " w"]
    copies: Int8[Array, " w"]
    least: Float64[Array, "w 4"]
    deviation: Int64[Array, "w 4"]


@lean
def words(requests: int, states: int, nodes: int) -> int:
    """Return the 8-byte words of a buffer for that many requests, states and nodes."""
    n, e, w = max(1, requests), 2 * requests + 3, 2 * SPAN + 1
    fixed = HEAD + 4 * n + (n + 7) // 8 + 3 * e + 21 + (3 + 2 * COPIES) * w + (w + 7) // 8
    return int(fixed + 8 * states + 2 * nodes + (nodes + 7) // 8)


@inlined
def view(buffer: Int64[Array, " words"]) -> Workspace:
    """Return the workspace in a buffer: the words behind its head."""
    requests, states, nodes = buffer[0], buffer[1], buffer[2]
    n, e, w = max(1, requests), 2 * requests + 3, 2 * SPAN + 1
    real, small = buffer.view(np.float64), buffer.view(np.int8)
    a = HEAD + 4 * n
    b = a + (n + 7) // 8
    c = b + 3 * e
    d = c + 21
    f = d + (3 + 2 * COPIES) * w
    g = f + (w + 7) // 8
    h = g + 8 * states
    i = h + 2 * nodes
    state = buffer[g:h].reshape((8, states))
    return Workspace(
        buffer[HEAD : HEAD + n],
        buffer[HEAD + n : HEAD + 2 * n],
        small[8 * a : 8 * a + n],
        real[b : b + e],
        real[b + e : b + 2 * e],
        buffer[b + 2 * e : c],
        real[HEAD + 2 * n : HEAD + 3 * n],
        buffer[HEAD + 3 * n : a],
        state[0:2],
        state[2:4],
        state[4:6],
        state[6:8],
        buffer[h : h + nodes],
        buffer[h + nodes : i],
        small[8 * i : 8 * i + nodes],
        real[c : c + 9].reshape((3, 3)),
        real[c + 9 : c + 12],
        buffer[c + 12 : d].reshape((3, 3)),
        real[d : d + w],
        buffer[d + w : d + 2 * w],
        buffer[d + 2 * w : d + 3 * w],
        small[8 * f : 8 * f + w],
        real[d + 3 * w : d + (3 + COPIES) * w].reshape((w, COPIES)),
        buffer[d + (3 + COPIES) * w : f].reshape((w, COPIES)),
    )


@kernel
def empty_buffer(requests: int, states: int, nodes: int) -> Int64[Array, " words"]:
    """Return a buffer for that many requests, states and nodes."""
    buffer = np.empty(words(requests, states, nodes), np.int64)
    buffer[:HEAD] = 0
    buffer[0], buffer[1], buffer[2] = requests, states, nodes
    return buffer


@kernel
def empty_workspace(requests: int, states: int, nodes: int) -> Workspace:
    """Return a workspace for that many requests, states and nodes."""
    return view(empty_buffer(requests, states, nodes))


@kernel
def grown(buffer: Int64[Array, " words"], side: int, states: int, nodes: int) -> Int64[Array, " words"]:
    """Return a buffer with four times the states and nodes; those in use, and all else, are copied."""
    larger = empty_buffer(buffer[0], 4 * buffer[1], 4 * buffer[2])
    fixed = words(buffer[0], 0, 0)
    larger[3:fixed] = buffer[3:fixed]
    old, new = view(buffer), view(larger)
    new.blocks[side, :states] = old.blocks[side, :states]
    new.value[side, :states] = old.value[side, :states]
    new.tie[side, :states] = old.tie[side, :states]
    new.node[side, :states] = old.node[side, :states]
    new.parent[:nodes] = old.parent[:nodes]
    new.request[:nodes] = old.request[:nodes]
    new.option[:nodes] = old.option[:nodes]
    return larger
