"""What a placement that is timed piece by piece is worth, and when one is better than another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import lean
from optsched.placement.problem import Goal
from optsched.placement.queues import NOBODY
from optsched.placement.retime import Timed

Array = np.ndarray
TTFET, ENERGY, COST, MISSES = 0, 1, 2, 3
CODES: dict[Goal, int] = {"ttfet": TTFET, "energy": ENERGY, "cost": COST, "slo_misses": MISSES}


class Aim(NamedTuple):
    """What is minimised.

    Attributes
    ----------
    code
        Of the objective, see `CODES`.
    idle_w, usd_per_s
        Of all replicas together.
    moved_cost
        Price of a conversation that is not where it was, in the objective's unit.
    home_prefill, home_decode
        Where each one was; `NOBODY`: nowhere, so that it may go anywhere for nothing.
    """

    code: int
    idle_w: float
    usd_per_s: float
    moved_cost: float
    home_prefill: Int64[Array, " C"]
    home_decode: Int64[Array, " C"]


@lean
def smallest(values: Float64[Array, " n"], count: int, rank: int) -> float:
    """Return the rank-th smallest (from 0) of the first `count` values, which are reordered (Hoare's selection)."""
    low, high = 0, count - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return float(values[rank])


@lean
def score(aim: Aim, timed: Timed, buffer: Float64[Array, " C"]) -> tuple[float, float]:
    """Return the objective over the conversations that are placed, with the price of those moved, and their mean TTFET."""
    count, moved, missed = 0, 0, 0
    total_s, last_s, move_j = 0.0, 0.0, 0.0
    for c in range(len(timed.prefill)):
        if timed.prefill[c] == NOBODY:
            continue
        buffer[count] = timed.ttfet_s[c]
        count += 1
        total_s += timed.ttfet_s[c]
        last_s = max(last_s, timed.end_s[c])
        missed += timed.missed[c]
        move_j += timed.moved_j[c]
        home = aim.home_prefill[c]
        if home != NOBODY and (home != timed.prefill[c] or aim.home_decode[c] != timed.decode[c]):
            moved += 1
    if count == 0:
        return 0.0, 0.0
    price, mean_s = aim.moved_cost * moved, total_s / count
    if aim.code == TTFET:
        rank = int(np.ceil(0.95 * count - 1e-9)) - 1
        return smallest(buffer, count, rank) + price, mean_s
    if aim.code == MISSES:
        return missed + price, mean_s
    if aim.code == COST:
        return aim.usd_per_s * last_s + price, mean_s
    dynamic_j = 0.0
    for r in range(len(timed.schedule.dynamic_j)):
        dynamic_j += timed.schedule.dynamic_j[r]
    return dynamic_j + move_j + aim.idle_w * last_s + price, mean_s
