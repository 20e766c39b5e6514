"""Duration of steps by the step law, compiled: one mixed step, and a run of decode steps in closed form."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from optsched.compiled import kernel
from optsched.placement.tables import Laws, Turns

Array = np.ndarray


@kernel
def gemm_s(laws: Laws, replica: int, tokens: float) -> float:
    """Return gemm(T): piecewise linear, constant below the first knot, the last slope continued."""
    knots = laws.knots[replica]
    x, y = laws.gemm_tokens[replica], laws.gemm_s[replica]
    if tokens <= x[0]:
        return float(y[0])
    k = 1
    while k < knots - 1 and tokens > x[k]:
        k += 1
    return float(y[k - 1] + (tokens - x[k - 1]) * (y[k] - y[k - 1]) / (x[k] - x[k - 1]))


@kernel
def step_s(laws: Laws, replica: int, chunk: int, pairs: float, decodes: int, kv_tokens: float) -> float:
    """Return the duration of one step: `decodes` sequences decode, and a prefill chunk goes along if `chunk` > 0."""
    sequences = decodes + (1 if chunk > 0 else 0)
    work = gemm_s(laws, replica, float(decodes + chunk)) + laws.pair_s[replica] * pairs
    work += laws.kv_s[replica] * kv_tokens + laws.sequence_s[replica] * sequences
    return float(laws.overhead_s[replica] + max(laws.floor_s[replica], work))


@kernel
def decode_run_s(laws: Laws, replica: int, decodes: int, kv_tokens: float, steps: int) -> float:
    """Return the duration of consecutive steps in which the same sequences decode; the cache grows by one token each.

    Notes
    -----
    Step j (from 0) reads ``kv_tokens + j decodes``; its work grows linearly, so that the sum of
    ``max(floor, work)`` splits where the work passes the floor.
    """
    first = gemm_s(laws, replica, float(decodes)) + laws.sequence_s[replica] * decodes + laws.kv_s[replica] * kv_tokens
    growth = laws.kv_s[replica] * decodes
    floor = laws.floor_s[replica]
    flat = 0
    if first < floor:
        below = math.ceil((floor - first) / growth) if floor - first < growth * steps else steps
        flat = min(steps, below)
    rest = steps - flat
    triangle = 0.5 * rest * (flat + steps - 1)
    return float(steps * laws.overhead_s[replica] + flat * floor + rest * first + growth * triangle)


@kernel
def steps_until(laws: Laws, replica: int, decodes: int, kv_tokens: float, most: int, seconds: float) -> int:
    """Return the fewest steps (1 to `most`) of a decode run that last at least so many seconds; `most` if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if decode_run_s(laws, replica, decodes, kv_tokens, middle) >= seconds:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def prefill_alone_s(laws: Laws, replica: int, tokens: int, cached: int, floor_counts: bool) -> float:
    """Return the time of one prefill in chunks with nothing else in its steps; without the floor if it is not to count."""
    total, done = 0.0, 0
    while done < tokens:
        chunk = min(laws.chunk[replica], tokens - done)
        pairs = chunk * (cached + done + 0.5 * chunk)
        work = gemm_s(laws, replica, float(chunk)) + laws.pair_s[replica] * pairs + laws.sequence_s[replica]
        total += laws.overhead_s[replica] + (max(laws.floor_s[replica], work) if floor_counts else work)
        done += chunk
    return total


@kernel
def alone_s(laws: Laws, turns: Turns, replica: int) -> tuple[Float64[Array, " T"], Float64[Array, " T"]]:
    """Return each turn's prefill time and decode time on a replica with nothing else running."""
    count = len(turns.tokens)
    prefill, decode = np.empty(count), np.empty(count)
    for turn in range(count):
        prefill[turn] = prefill_alone_s(laws, replica, turns.tokens[turn], turns.cached[turn], True)
        context = float(turns.cached[turn] + turns.tokens[turn])
        decode[turn] = decode_run_s(laws, replica, 1, context, turns.outputs[turn] - 1)
    return prefill, decode
