"""Step laws as arrays, and what they say of a step, compiled: the one copy that evaluator, bounds and simulator share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import lean
from optsched.domain.step_law import JITTER_QUANTILES, StepLaw

Array = np.ndarray
_SCALARS = (
    "overhead_s", "floor_s", "pair_s", "prefill_context_s", "kv_s", "sequence_s", "hidden_s", "hidden_step_s",
    "step_j", "pair_j", "prefill_context_j", "kv_j", "sequence_j", "hidden_j", "hidden_step_j",
)  # fmt: skip
_KNOTS = ("gemm_tokens", "gemm_s", "gemm_j")


class Laws(NamedTuple):
    """Step laws of R replicas; the fields are those of `StepLaw`, one row each (`pack`).

    Attributes
    ----------
    knots
        Number of knots of each row of `gemm_tokens`, `gemm_s` and `gemm_j`; columns beyond it are unused.
    slowdown
        `StepLaw.busy_slowdown`, the last entry continued.
    jitter
        `StepLaw.decode_jitter` and `prefill_jitter`, the last row continued; no levels if no law has any.
    """

    overhead_s: Float64[Array, " R"]
    floor_s: Float64[Array, " R"]
    pair_s: Float64[Array, " R"]
    prefill_context_s: Float64[Array, " R"]
    kv_s: Float64[Array, " R"]
    sequence_s: Float64[Array, " R"]
    hidden_s: Float64[Array, " R"]
    hidden_step_s: Float64[Array, " R"]
    step_j: Float64[Array, " R"]
    pair_j: Float64[Array, " R"]
    prefill_context_j: Float64[Array, " R"]
    kv_j: Float64[Array, " R"]
    sequence_j: Float64[Array, " R"]
    hidden_j: Float64[Array, " R"]
    hidden_step_j: Float64[Array, " R"]
    gemm_tokens: Float64[Array, "R K"]
    gemm_s: Float64[Array, "R K"]
    gemm_j: Float64[Array, "R K"]
    knots: Int64[Array, " R"]
    slowdown: Float64[Array, "R busy"]
    jitter: Float64[Array, "R 2 levels Q"]


def pack(laws: Sequence[StepLaw]) -> Laws:
    """Lay out step laws as arrays, one row per law; shorter rows are continued with their last entry."""

    def padded(name: str) -> Float64[Array, "R K"]:
        rows: list[tuple[float, ...]] = [getattr(law, name) for law in laws]
        width = max(map(len, rows))
        return np.array([row + (row[-1],) * (width - len(row)) for row in rows], dtype=np.float64)

    columns = {name: np.array([getattr(law, name) for law in laws], dtype=np.float64) for name in _SCALARS}
    knots = np.array([len(law.gemm_tokens) for law in laws], dtype=np.int64)
    arrays = {name: padded(name) for name in _KNOTS}
    return Laws(**columns, **arrays, knots=knots, slowdown=padded("busy_slowdown"), jitter=_jitter(laws))


def _jitter(laws: Sequence[StepLaw]) -> Float64[Array, "R 2 levels Q"]:
    rows = [(law.decode_jitter, law.prefill_jitter) for law in laws]
    levels = max(len(kind) for both in rows for kind in both)
    found = np.ones((len(laws), 2, levels, JITTER_QUANTILES))
    for index, both in enumerate(rows):
        for kind, given in enumerate(both):
            if given:
                found[index, kind] = (given + (given[-1],) * levels)[:levels]
    return found


@lean
def between_knots(x: Float64[Array, " K"], y: Float64[Array, " K"], knots: int, tokens: float) -> float:
    """Return a piecewise linear function of T: constant below the first knot, the last slope continued."""
    if tokens <= x[0]:
        return float(y[0])
    k = 1
    while k < knots - 1 and tokens > x[k]:
        k += 1
    return float(y[k - 1] + (tokens - x[k - 1]) * (y[k] - y[k - 1]) / (x[k] - x[k - 1]))


@lean
def gemm_s(laws: Laws, replica: int, tokens: float) -> float:
    """Return gemm(T) in seconds."""
    return float(between_knots(laws.gemm_tokens[replica], laws.gemm_s[replica], laws.knots[replica], tokens))


@lean
def gemm_j(laws: Laws, replica: int, tokens: float) -> float:
    """Return the energy of gemm(T) in joules."""
    return float(between_knots(laws.gemm_tokens[replica], laws.gemm_j[replica], laws.knots[replica], tokens))


@lean
def step_s(
    laws: Laws, replica: int, tokens: float, pairs: float, context: float, kv_tokens: float, sequences: float, hidden: float
) -> float:
    """Return the duration of one step in seconds, as `StepLaw.step_s` does; `context` is that of the sequences in prefill."""
    work = gemm_s(laws, replica, tokens) + laws.pair_s[replica] * pairs + laws.prefill_context_s[replica] * context
    work += laws.kv_s[replica] * kv_tokens + laws.sequence_s[replica] * sequences + laws.hidden_s[replica] * hidden
    work += laws.hidden_step_s[replica] * min(hidden, 1.0)
    return float(laws.overhead_s[replica] + max(laws.floor_s[replica], work))


@lean
def step_j(
    laws: Laws, replica: int, tokens: float, pairs: float, context: float, kv_tokens: float, sequences: float, hidden: float
) -> float:
    """Return the dynamic energy of one step in joules, as `StepLaw.energy_j` does."""
    spent = laws.step_j[replica] + gemm_j(laws, replica, tokens) + laws.pair_j[replica] * pairs
    spent += laws.prefill_context_j[replica] * context + laws.kv_j[replica] * kv_tokens
    spent += laws.sequence_j[replica] * sequences + laws.hidden_j[replica] * hidden
    return float(spent + laws.hidden_step_j[replica] * min(hidden, 1.0))


@lean
def slowdown(laws: Laws, replica: int, busy: int) -> float:
    """Return the factor on a step's duration with so many replicas busy on its host, itself included."""
    return float(laws.slowdown[replica, min(busy, laws.slowdown.shape[1]) - 1])


@lean
def jitter(laws: Laws, replica: int, busy: int, prefills: bool, number: int) -> float:
    """Return the factor by which one step on a shared host differs from the mean; its number stands in for chance.

    References
    ----------
    The number is scrambled by lowbias32 (C. Wellons, "Prospecting for hash functions", nullprogram.com/blog/2018/07/31).
    """
    levels = laws.jitter.shape[2]
    if levels == 0:
        return 1.0
    mixed = (((number & 0x7FFFFFFF) << 6) + replica) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    share = ((mixed >> 16) ^ mixed) / 4294967296.0
    row = laws.jitter[replica, 1 if prefills else 0, min(busy, levels) - 1]
    place = min(max(share * JITTER_QUANTILES - 0.5, 0.0), JITTER_QUANTILES - 1.0)
    below = min(int(place), JITTER_QUANTILES - 2)
    return float(row[below] + (place - below) * (row[below + 1] - row[below]))


@lean
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


@lean
def decode_run_j(laws: Laws, replica: int, decodes: int, kv_tokens: float, steps: int) -> float:
    """Return the dynamic energy of such consecutive steps in joules."""
    each = step_j(laws, replica, float(decodes), 0.0, 0.0, kv_tokens, float(decodes), 0.0)
    return float(steps * each + laws.kv_j[replica] * 0.5 * decodes * steps * (steps - 1.0))


@lean
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


@lean
def prefill_alone_s(laws: Laws, replica: int, tokens: int, cached: int, chunk: int) -> float:
    """Return the time of one prefill in chunks with nothing else in its steps."""
    total, done = 0.0, 0
    while done < tokens:
        new, context = min(chunk, tokens - done), float(cached + done)
        total += step_s(laws, replica, float(new), new * (context + 0.5 * new), context, 0.0, 1.0, 0.0)
        done += new
    return total
