"""How attention kernels stay below a card's datasheet, in prefill and in decode."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Bytes, Seconds


class PrefillAttentionLaw(Frozen):
    """Attention of new tokens over themselves and a cached context; `optsched.cost.prefill_attention` has the formula.

    Attributes
    ----------
    compute
        Share of the peak FLOP rate that long prompts of wide heads reach.
    half_width, wide_width
        Width of a head at which exponentials take as long as products, and at which the accumulators of a tile have outgrown
        the registers so that it takes twice as long.
    tile_rows, packing
        Rows of queries that a sequence is rounded up to, and how much of that the query heads of one KV head share: a group
        of g needs ``tile_rows / g ** packing``.
    row_keys, window_keys
        Keys that a row costs beside those it attends to: the masked part of its tiles, and reading and writing it; and
        beside a sliding window.
    path_s
        Time per key of the longest row, heads of width 128: one multiprocessor walks it, however many idle.
    overlap
        How far that walk and the throughput of all multiprocessors hide behind each other: 0 add up, large the longer one.
    memory
        Share of the peak bandwidth.
    copies
        Passes over the new keys and values, per byte of writing and reading them once.
    resident_bytes, sharpness, resident_cost
        New queries, keys, values and outputs that stay in the last-level cache, how sharply they stop fitting
        (``bytes ** sharpness``), and what they then cost of the time that memory takes.
    copy_width, copy_s
        Time per token to store wide keys and values into the cache, and the elements at which half of it is reached.
    launch_s
        Time of kernels that have nothing to do.
    """

    compute: float = Field(default=0.7, gt=0, le=1)
    half_width: float = Field(default=24.0, gt=0)
    wide_width: float = Field(default=1000.0, gt=0)
    tile_rows: float = Field(default=96.0, gt=0)
    packing: float = Field(default=0.2, gt=0, le=1)
    row_keys: float = Field(default=96.0, gt=0)
    window_keys: float = Field(default=32.0, gt=0)
    path_s: Seconds = 10e-9
    overlap: float = Field(default=1.0, gt=0, le=8)
    memory: float = Field(default=0.8, gt=0, le=1)
    copies: float = Field(default=1.5, gt=0)
    resident_bytes: Bytes = Field(default=30e6, alias="resident", gt=0)
    sharpness: float = Field(default=2.0, gt=0, le=8)
    resident_cost: float = Field(default=0.3, gt=0, le=1)
    copy_width: float = Field(default=600.0, gt=0)
    copy_s: Seconds = 3e-9
    launch_s: Seconds = 8e-6
    fit: Fit | None = None


class DecodeAttentionLaw(Frozen):
    """Attention of one new token per sequence over its cached ones; `optsched.cost.decode_attention` has the formula.

    Attributes
    ----------
    memory, narrow_width
        Share of the peak bandwidth that reads of wide heads reach, and the width of a head at which half of it is left.
    compute, tile_rows, wide_width
        Share of the peak FLOP rate; query heads that the group of a KV head is rounded up to; and the width of a head at which
        the work has doubled (conversions of an 8-bit cache).
    unit_s, half_width
        Time per sequence and KV head of width 128, all multiprocessors together, and the width whose time is as long as the
        constant part.
    grouping, window_grouping
        How much of that each query head of a group costs again: ``g ** grouping``; with a sliding window.
    path_s, path_power
        Time to walk a context of 1,024 tokens split over multiprocessors, heads of width 128, and the power of the context
        it grows with.
    serial_s
        Time per cached token of a walk that is not split: kernels that split only the query heads that share a KV head.
    split_s
        Time to join the pieces of a split context.
    overlap
        How far memory, compute, units and walks hide behind each other: 0 add up, large the longest one.
    query_passes, sequence_s
        Passes over queries and outputs, and time per sequence.
    window_keys
        Tokens read beside a full sliding window.
    resident_bytes, resident_cost
        Caches that stay in the last-level cache from one measurement to the next, and what they then cost of the time that
        memory takes at its peak. Not so while serving: a layer's weights pass in between.
    launch_s
        Time of kernels that have nothing to do.
    """

    memory: float = Field(default=0.85, gt=0, le=1)
    narrow_width: float = Field(default=4.0, gt=0)
    compute: float = Field(default=0.4, gt=0, le=1)
    tile_rows: float = Field(default=16.0, gt=0)
    wide_width: float = Field(default=800.0, gt=0)
    unit_s: Seconds = 20e-9
    half_width: float = Field(default=128.0, gt=0)
    grouping: float = Field(default=0.03, gt=0, le=1)
    window_grouping: float = Field(default=0.2, gt=0, le=1)
    path_s: Seconds = 4e-6
    path_power: float = Field(default=0.5, gt=0, le=1)
    serial_s: Seconds = 2e-10
    split_s: Seconds = 2e-6
    overlap: float = Field(default=1.0, gt=0, le=8)
    query_passes: float = Field(default=1.0, gt=0)
    sequence_s: Seconds = 2e-9
    window_keys: float = Field(default=32.0, gt=0)
    resident_bytes: Bytes = Field(default=40e6, alias="resident", gt=0)
    resident_cost: float = Field(default=0.5, gt=0, le=1)
    launch_s: Seconds = 8e-6
    fit: Fit | None = None
