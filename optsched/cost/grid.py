"""Costs of whole grids of steps: tiers x tensor parallelism x batch x context x prompt, millions at a time, in bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Num

from optsched.cost.features import StepFeatures, attended_pairs, attended_tokens
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import step_cost
from optsched.cost.tables import replica_parameters, step_law
from optsched.cost.tier import TierParameters
from optsched.domain.hardware import Tier
from optsched.domain.llm import Llm
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError

Array = np.ndarray
By = Literal["model", "law"]
CHUNK_POINTS = 1 << 15  # larger ones gain little more, and leave the caches with all their intermediate results
_LONGEST_SIDE = 128
_WORKERS = min(4, os.cpu_count() or 1)  # XLA leaves these operations on one core; blocks are computed side by side


@dataclass(frozen=True, slots=True)
class StepAxes:
    """Axes of a grid of steps: `batch` sequences of `context` cached tokens each decode beside one prompt of `prompt` tokens.

    Attributes
    ----------
    batch, context, prompt
        Numbers of sequences and of tokens. A prompt of 0 tokens is none; with a batch of 0 sequences it is alone.

    Raises
    ------
    SpecError
        If an axis is empty, or holds something below 0.
    """

    batch: Num[Array, " B"]
    context: Num[Array, " C"]
    prompt: Num[Array, " P"]

    def __post_init__(self) -> None:
        """Check the axes."""
        for name in ("batch", "context", "prompt"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or not len(values) or not values.min() >= 0:
                raise SpecError(f"the {name} axis of a grid must be a list of numbers from 0 on; give at least one number")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Lengths of the axes."""
        return len(self.batch), len(self.context), len(self.prompt)

    @property
    def num_points(self) -> int:
        """Steps of the grid, for each replica."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GridCosts:
    """Duration and energy (idle power included) of every step of a grid, 16 bytes per point."""

    seconds: Float64[Array, "tiers tp B C P"]
    joules: Float64[Array, "tiers tp B C P"]


@dataclass(frozen=True, slots=True)
class GridChunk:
    """Costs of a block of a replica's grid: parts of the three axes, and the steps where they meet."""

    place: tuple[slice, slice, slice]
    seconds: Float64[Array, "b c p"]
    joules: Float64[Array, "b c p"]


class _Totals(eqx.Module):
    """The entries of the axes as float64, with the cached tokens and the pairs that attention sees of them."""

    batch: Scalar
    attended: Scalar
    prompt: Scalar
    pairs: Scalar

    @classmethod
    def of(cls, llm: Llm, axes: StepAxes) -> _Totals:
        prompt = np.asarray(axes.prompt, np.float64)
        attended = attended_tokens(np.asarray(axes.context, np.float64), llm.sliding_window)
        pairs = attended_pairs(prompt, np.zeros_like(prompt), llm.sliding_window)
        return cls(np.asarray(axes.batch, np.float64), attended, prompt, pairs)  # type: ignore[arg-type]


def _costs(
    tier: TierParameters, shape: LlmShape, batch: Scalar, attended: Scalar, prompt: Scalar, pairs: Scalar
) -> tuple[Scalar, Scalar]:
    sequences = batch + jnp.minimum(prompt, 1.0)
    step = StepFeatures(
        prefill_tokens=prompt,
        pairs=pairs,
        prefill_context_tokens=jnp.zeros_like(prompt),
        decode_sequences=batch,
        kv_tokens=batch * attended,
        hidden_tokens=jnp.zeros_like(prompt),
        sequences=sequences,
        emitting=sequences,
    )
    cost = step_cost(tier, shape, step)
    return cost.seconds, cost.joules


# One axis after the other, so that what depends on two of them (most operations do) is computed once for all of the third.
_of_prompts = jax.vmap(_costs, in_axes=(None, None, None, None, 0, 0))
_of_contexts = jax.vmap(_of_prompts, in_axes=(None, None, None, 0, None, None))
_of_block = jax.jit(jax.vmap(_of_contexts, in_axes=(None, None, 0, None, None, None)))


@double_precision
def _model_block(parameters: tuple[TierParameters, LlmShape], axes: list[Array], blocks: list[slice]) -> tuple[Array, Array]:
    batch, attended, prompt, pairs = (axis[block] for axis, block in zip(axes, (*blocks, blocks[2]), strict=True))
    seconds, joules = _of_block(*parameters, batch, attended, prompt, pairs)
    return np.asarray(seconds), np.asarray(joules)


def _model_chunks(parameters: tuple[TierParameters, LlmShape], totals: _Totals, size: int) -> Iterator[GridChunk]:
    """Yield blocks of one size, compiled once; where an axis ends inside one, its last entry repeats."""
    axes = [np.asarray(each) for each in (totals.batch, totals.attended, totals.prompt, totals.pairs)]
    lengths, sides, left = [len(axis) for axis in axes[:3]], [1, 1, 1], size
    for place in (2, 1, 0):
        most = min(left, _LONGEST_SIDE)
        sides[place] = -(-lengths[place] // -(-lengths[place] // most))
        left = max(1, left // sides[place])
    padded = [np.pad(axis, (0, -len(axis) % side), mode="edge") for axis, side in zip(axes, (*sides, sides[2]), strict=True)]

    def block(corner: tuple[int, ...]) -> GridChunk:
        seconds, joules = _model_block(parameters, padded, [slice(at, at + side) for at, side in zip(corner, sides, strict=True)])
        b, c, p = (slice(at, min(at + side, end)) for at, side, end in zip(corner, sides, lengths, strict=True))
        kept = tuple(slice(each.stop - each.start) for each in (b, c, p))
        return GridChunk((b, c, p), seconds[kept], joules[kept])

    corners = product(*(range(0, length, side) for length, side in zip(lengths, sides, strict=True)))
    yield block(next(corners))  # compiles
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: deque[Future[GridChunk]] = deque()
        for corner in corners:
            waiting.append(pool.submit(block, corner))
            if len(waiting) > _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _law_chunks(law: StepLaw, totals: _Totals, size: int) -> Iterator[GridChunk]:
    """Yield all prompts of some contexts at a time: what depends on prompt and batch alone is computed once for all contexts."""
    batch, attended, prompt, pairs = (np.asarray(x) for x in (totals.batch, totals.attended, totals.prompt, totals.pairs))
    some = max(1, size // len(prompt))
    for index, decoding in enumerate(batch):
        tokens, sequences = decoding + prompt, decoding + np.minimum(prompt, 1.0)
        work = law.gemm(tokens) + law.pair_s * pairs + law.sequence_s * sequences
        spent = law.step_j + law.gemm_energy(tokens) + law.pair_j * pairs + law.sequence_j * sequences
        for first in range(0, len(attended), some):
            read = (decoding * attended[first : first + some])[:, None]
            seconds, joules = law.kv_s * read + work, law.kv_j * read + spent
            np.maximum(seconds, law.floor_s, out=seconds)
            seconds += law.overhead_s
            joules += law.idle_w * seconds
            place = slice(index, index + 1), slice(first, first + len(seconds)), slice(0, len(prompt))
            yield GridChunk(place, seconds[None], joules[None])


def grid_chunks(
    llm: Llm, tier: Tier, axes: StepAxes, *, tp: int = 1, by: By = "model", chunk_points: int = CHUNK_POINTS
) -> Iterator[GridChunk]:
    """Yield the costs of a replica's grid of steps piece by piece, so that no more than one piece is ever held.

    Parameters
    ----------
    llm, tier, tp
        The replica.
    axes
        The steps.
    by
        ``model``: every operation of the full model; ``law``: the coefficients of the replica's step law.
    chunk_points
        Most steps of a block. By the full model some blocks are computed side by side, and each step takes some hundred bytes
        meanwhile; a law takes whole rows of prompts.

    Raises
    ------
    SpecError
        If the llm cannot be split so, `by` is unknown, or `chunk_points` is below 1.
    """
    if chunk_points < 1:
        raise SpecError(f"chunk_points={chunk_points} must be at least 1; {CHUNK_POINTS} is usual")
    totals = _Totals.of(llm, axes)
    if by == "law":
        yield from _law_chunks(step_law(llm, tier, tp=tp), totals, chunk_points)
    elif by == "model":
        yield from _model_chunks(replica_parameters(llm, tier, tp=tp), totals, chunk_points)
    else:
        raise SpecError(f"by={by!r} is unknown; choose model or law")


def evaluate_grid(
    llm: Llm, tiers: Sequence[Tier], tps: Sequence[int], axes: StepAxes, *, by: By = "model", chunk_points: int = CHUNK_POINTS
) -> GridCosts:
    """Return duration and energy of every step of a grid on every replica.

    Parameters
    ----------
    llm
        What is served.
    tiers, tps
        Where: each tier with each number of GPUs per layer, over the tier's own interconnect.
    axes, by, chunk_points
        As in `grid_chunks`.

    Returns
    -------
    GridCosts
        Beside its 16 bytes per point the memory in use does not grow with the grid.

    Raises
    ------
    SpecError
        As `grid_chunks`.
    """
    shape = (len(tiers), len(tps), *axes.shape)
    seconds, joules = np.empty(shape), np.empty(shape)
    for i, tier in enumerate(tiers):
        for j, tp in enumerate(tps):
            for chunk in grid_chunks(llm, tier, axes, tp=tp, by=by, chunk_points=chunk_points):
                seconds[i, j][chunk.place], joules[i, j][chunk.place] = chunk.seconds, chunk.joules
    return GridCosts(seconds, joules)
