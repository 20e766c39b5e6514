"""A vertex of the dual of the relaxation with several rows: where three hyperplanes meet, and along which edge to leave it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from optsched.batching.greedy import SKIP, TAKE_HIDDEN
from optsched.batching.workspace import Workspace
from optsched.compiled import lean

Array = np.ndarray

NO_REQUEST = -1
SLACK = 1e-9


class Rows(NamedTuple):
    """Sizes and limits of a problem with three rows: blocks, tokens, sequences."""

    kv_blocks: Int64[Array, " n"]
    hidden_blocks: Int64[Array, " n"]
    tokens: Int64[Array, " n"]
    memory: int
    token_budget: int
    max_sequences: int


@lean
def allowed(p: int, u: int, m: int, s: int, token: int, rows: tuple[int, int, int]) -> tuple[bool, bool]:
    """Tell whether a request may take hidden cache, and KV: fitting all limits by themselves and not dominated."""
    possible = p > 0 and token <= rows[1] and rows[2] >= 1
    hidden = possible and s < m and s <= rows[0] and p > u
    return hidden, possible and m <= rows[0] and not (hidden and u == 0)


@lean
def edge_of(space: Workspace, k: int) -> tuple[float, float, float]:
    """Return the direction in which the hyperplanes other than the k-th meet: the cross product of their normals."""
    a, b = space.normal[(k + 1) % 3], space.normal[(k + 2) % 3]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@lean
def vertex(space: Workspace) -> tuple[float, float, float]:
    """Return where the three hyperplanes meet."""
    x, y, z = 0.0, 0.0, 0.0
    for k in range(3):
        edge, level = edge_of(space, k), space.level[k]
        x, y, z = x + level * edge[0], y + level * edge[1], z + level * edge[2]
    edge, normal = edge_of(space, 0), space.normal[0]
    det = edge[0] * normal[0] + edge[1] * normal[1] + edge[2] * normal[2]
    return max(0.0, x / det), max(0.0, y / det), max(0.0, z / det)


@lean
def leaving(space: Workspace, left: tuple[float, float, float]) -> tuple[int, float]:
    """Return which hyperplane to drop, and the direction's sign; -1 where none makes L fall."""
    edge, normal = edge_of(space, 0), space.normal[0]
    det = edge[0] * normal[0] + edge[1] * normal[1] + edge[2] * normal[2]
    drop, worst, sign = -1, SLACK, 0.0
    for k in range(3):
        twice = space.held[k, 0] != NO_REQUEST and space.held[k, 0] in (space.held[(k + 1) % 3, 0], space.held[(k + 2) % 3, 0])
        edge, normal = edge_of(space, k), space.normal[k]
        multiplier = -(left[0] * edge[0] + left[1] * edge[1] + left[2] * edge[2]) / det
        facing = np.sign(edge[0] * normal[0] + edge[1] * normal[1] + edge[2] * normal[2])
        wrong = -multiplier
        if space.held[k, 0] == NO_REQUEST:
            wrong, facing = multiplier, -facing
        elif multiplier > 1.0 and not twice:
            wrong, facing = multiplier - 1.0, -facing
        size = np.sqrt(edge[0] ** 2 + edge[1] ** 2 + edge[2] ** 2)
        if wrong > SLACK and wrong * abs(det) / size > worst:
            drop, worst, sign = k, wrong * abs(det) / size, -facing
    return drop, sign


@lean
def hold(space: Workspace, rows: Rows, k: int, code: int) -> None:
    """Make the k-th hyperplane that of a request between two options; `start` keeps the former."""
    i, lower, upper = code // 16, code // 4 % 4, code % 4
    space.held[k, 0], space.held[k, 1], space.held[k, 2] = i, lower, upper
    space.start[i] = lower
    space.normal[k], space.level[k] = 0.0, 0.0
    for sign, option in ((1, lower), (-1, upper)):
        if option != SKIP:
            hidden = option == TAKE_HIDDEN
            space.normal[k, 0] += sign * (rows.hidden_blocks[i] if hidden else rows.kv_blocks[i])
            space.normal[k, 1] += sign * rows.tokens[i]
            space.normal[k, 2] += sign
            space.level[k] += sign * (space.gain[i] - (space.penalty[i] if hidden else 0))


@lean
def _multiplier(space: Workspace, left: tuple[float, float, float], k: int) -> float:
    """Return the k-th hyperplane's multiplier: how far its request is from its lower to its upper option."""
    edge, normal = edge_of(space, k), space.normal[k]
    det = edge[0] * normal[0] + edge[1] * normal[1] + edge[2] * normal[2]
    return float(-(left[0] * edge[0] + left[1] * edge[1] + left[2] * edge[2]) / det)


@lean
def rebase(space: Workspace, rows: Rows, left: tuple[float, float, float]) -> bool:
    """Where one request is indifferent between three options, make sure that none but the upper two is to be left."""
    for k in range(3):
        other = (k + 1) % 3
        i = space.held[k, 0]
        if i == NO_REQUEST or i != space.held[other, 0]:
            continue
        if _multiplier(space, left, k) + _multiplier(space, left, other) <= 1.0 + SLACK:
            continue
        lower, middle, upper = space.held[k, 1], space.held[k, 2], space.held[other, 2]
        hold(space, rows, k, 16 * i + 4 * middle + lower)
        hold(space, rows, other, 16 * i + 4 * middle + upper)
        return True
    return False
