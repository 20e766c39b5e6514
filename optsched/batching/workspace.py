"""Buffers of the exact solvers: allocated once, used by every solve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64

from optsched.compiled import kernel

Array = np.ndarray

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


@kernel
def empty_workspace(requests: int, states: int, nodes: int) -> Workspace:
    """Return a workspace for that many requests, states and nodes."""
    n, e = max(1, requests), 2 * requests + 3
    return Workspace(
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int8),
        np.empty(e, np.float64),
        np.empty(e, np.float64),
        np.empty(e, np.int64),
        np.empty(n, np.float64),
        np.empty(n, np.int64),
        np.empty((2, states), np.int64),
        np.empty((2, states), np.int64),
        np.empty((2, states), np.int64),
        np.empty((2, states), np.int64),
        np.empty(nodes, np.int64),
        np.empty(nodes, np.int64),
        np.empty(nodes, np.int8),
        np.empty((3, 3)),
        np.empty(3),
        np.empty((3, 3), np.int64),
        np.empty(2 * SPAN + 1),
        np.empty(2 * SPAN + 1, np.int64),
        np.empty(2 * SPAN + 1, np.int64),
        np.empty(2 * SPAN + 1, np.int8),
        np.empty((2 * SPAN + 1, COPIES)),
        np.empty((2 * SPAN + 1, COPIES), np.int64),
    )


@kernel
def with_more_states(space: Workspace, side: int, states: int, nodes: int) -> Workspace:
    """Return a workspace with four times the states and nodes; those in use are copied."""
    wide, long = 4 * space.blocks.shape[1], 4 * len(space.parent)
    larger = Workspace(
        space.gain,
        space.penalty,
        space.start,
        space.density,
        space.weight,
        space.element,
        space.loss,
        space.member,
        np.empty((2, wide), np.int64),
        np.empty((2, wide), np.int64),
        np.empty((2, wide), np.int64),
        np.empty((2, wide), np.int64),
        np.empty(long, np.int64),
        np.empty(long, np.int64),
        np.empty(long, np.int8),
        space.normal,
        space.level,
        space.held,
        space.rest,
        space.place,
        space.queue,
        space.copies,
        space.least,
        space.deviation,
    )
    larger.blocks[side, :states] = space.blocks[side, :states]
    larger.value[side, :states] = space.value[side, :states]
    larger.tie[side, :states] = space.tie[side, :states]
    larger.node[side, :states] = space.node[side, :states]
    larger.parent[:nodes] = space.parent[:nodes]
    larger.request[:nodes] = space.request[:nodes]
    larger.option[:nodes] = space.option[:nodes]
    return larger
