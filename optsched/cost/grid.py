"""Costs of whole grids of steps: tiers x tensor parallelism x batch x context x prompt, millions at a time, in bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Num

from optsched.cost.features import StepFeatures, WindowedTotals, attended_pairs, attended_tokens
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
ModuleT = TypeVar("ModuleT", Scalar, "_Seen")
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


class _Seen(eqx.Module):
    """Along the contexts: cached tokens that attention sees; along the prompts: tokens, and pairs that it sees.

    `windowed` is what layers with a sliding window see of the same, where others have none.
    """

    tokens: Scalar
    seen: Scalar
    windowed: Scalar | None


class _Totals(eqx.Module):
    """The entries of the axes as float64, with what attention sees of them."""

    batch: Scalar
    context: _Seen
    prompt: _Seen

    @classmethod
    def of(cls, llm: Llm, axes: StepAxes) -> _Totals:
        batch, context, prompt = (np.asarray(each, np.float64) for each in (axes.batch, axes.context, axes.prompt))
        none, windows = np.zeros_like(prompt), (llm.common_window, llm.layer_window)
        held = [attended_tokens(context, window) for window in windows]
        pairs = [attended_pairs(prompt, none, window) for window in windows]
        hybrid = llm.layer_window is not None
        return cls(
            batch,  # type: ignore[arg-type]
            _Seen(context, held[0], held[1] if hybrid else None),  # type: ignore[arg-type]
            _Seen(prompt, pairs[0], pairs[1] if hybrid else None),  # type: ignore[arg-type]
        )

    def block(self, b: slice, c: slice, p: slice) -> tuple[Scalar, _Seen, _Seen]:
        """Return a part of each axis."""
        some: tuple[Scalar, _Seen, _Seen] = (
            self.batch[b],
            *(jax.tree.map(lambda leaf, of=of: leaf[of], each) for each, of in ((self.context, c), (self.prompt, p))),
        )
        return some


def _costs(tier: TierParameters, shape: LlmShape, batch: Scalar, context: _Seen, prompt: _Seen) -> tuple[Scalar, Scalar]:
    sequences, nothing = batch + jnp.minimum(prompt.tokens, 1.0), jnp.zeros_like(prompt.tokens)
    windowed = None
    if context.windowed is not None and prompt.windowed is not None:
        windowed = WindowedTotals(prompt.windowed, nothing, batch * context.windowed, nothing)
    step = StepFeatures(
        prefill_tokens=prompt.tokens,
        pairs=prompt.seen,
        prefill_context_tokens=nothing,
        decode_sequences=batch,
        kv_tokens=batch * context.seen,
        hidden_tokens=nothing,
        sequences=sequences,
        emitting=sequences,
        windowed=windowed,
    )
    cost = step_cost(tier, shape, step)
    return cost.seconds, cost.joules


# One axis after the other, so that what depends on two of them (most operations do) is computed once for all of the third.
_of_prompts = jax.vmap(_costs, in_axes=(None, None, None, None, 0))
_of_contexts = jax.vmap(_of_prompts, in_axes=(None, None, None, 0, None))
_of_block = jax.jit(jax.vmap(_of_contexts, in_axes=(None, None, 0, None, None)))


@double_precision
def _model_block(parameters: tuple[TierParameters, LlmShape], totals: _Totals, blocks: list[slice]) -> tuple[Array, Array]:
    seconds, joules = _of_block(*parameters, *totals.block(*blocks))
    return np.asarray(seconds), np.asarray(joules)


def _model_chunks(parameters: tuple[TierParameters, LlmShape], totals: _Totals, size: int) -> Iterator[GridChunk]:
    """Yield blocks of one size, compiled once; where an axis ends inside one, its last entry repeats."""
    lengths = [len(np.asarray(each)) for each in (totals.batch, totals.context.tokens, totals.prompt.tokens)]
    sides, left = [1, 1, 1], size
    for place in (2, 1, 0):
        most = min(left, _LONGEST_SIDE)
        sides[place] = -(-lengths[place] // -(-lengths[place] // most))
        left = max(1, left // sides[place])

    def longer(axis: ModuleT, side: int) -> ModuleT:
        grown: ModuleT = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, -len(leaf) % side), mode="edge"), axis)
        return grown

    padded = _Totals(longer(totals.batch, sides[0]), longer(totals.context, sides[1]), longer(totals.prompt, sides[2]))

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
    batch, attended, prompt, pairs = (
        np.asarray(x) for x in (totals.batch, totals.context.seen, totals.prompt.tokens, totals.prompt.seen)
    )
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
