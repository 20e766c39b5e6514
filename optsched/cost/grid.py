"""Costs of whole grids of steps: tiers x tensor parallelism x batch x context x prompt, millions at a time, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64, Num

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
CHUNK_POINTS = 1 << 14  # as many as stay in the caches with all their intermediate results


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
    """Costs of the steps from `start` on, the axes of a replica's grid flattened with the prompt running fastest."""

    start: int
    seconds: Float64[Array, " n"]
    joules: Float64[Array, " n"]


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


@partial(jax.jit, static_argnums=3)
def _steps(totals: _Totals, lengths: Int64[Array, " 3"], start: Int64[Array, ""], count: int) -> StepFeatures:
    """Return the steps from `start` on; beyond the end the last one."""
    points = jnp.minimum(start + jnp.arange(count), lengths.prod() - 1)
    rest, prompt = jnp.divmod(points, lengths[2])
    batch, context = jnp.divmod(rest, lengths[1])
    decoding, new = totals.batch[batch], totals.prompt[prompt]
    sequences = decoding + jnp.minimum(new, 1.0)
    return StepFeatures(
        prefill_tokens=new,
        pairs=totals.pairs[prompt],
        prefill_context_tokens=jnp.zeros_like(new),
        decode_sequences=decoding,
        kv_tokens=decoding * totals.attended[context],
        hidden_tokens=jnp.zeros_like(new),
        sequences=sequences,
        emitting=sequences,
    )


def _costs(tier: TierParameters, shape: LlmShape, step: StepFeatures) -> tuple[Scalar, Scalar]:
    cost = step_cost(tier, shape, step)
    return cost.seconds, cost.joules


# Compiled apart from `_steps`, which would otherwise be computed anew for every operation that reads its result.
_many = jax.jit(jax.vmap(_costs, in_axes=(None, None, 0)))


@double_precision
def _model_chunk(
    parameters: tuple[TierParameters, LlmShape], totals: _Totals, lengths: tuple[int, ...], start: int, size: int
) -> GridChunk:
    seconds, joules = _many(*parameters, _steps(totals, np.array(lengths), np.int64(start), size))
    kept = min(size, math.prod(lengths) - start)
    return GridChunk(start, np.asarray(seconds)[:kept], np.asarray(joules)[:kept])


def _padded(axis: Scalar) -> Scalar:
    """Continue an axis to a power of two, so that few lengths are ever compiled."""
    values = np.asarray(axis)
    grown: Scalar = np.pad(values, (0, (1 << (len(values) - 1).bit_length()) - len(values)), mode="edge")  # type: ignore[assignment]
    return grown


def _law_chunks(law: StepLaw, totals: _Totals, size: int) -> Iterator[GridChunk]:
    """Yield whole rows of prompts: what depends on the prompt and the batch alone is computed once for all contexts."""
    batch, attended, prompt, pairs = (np.asarray(x) for x in (totals.batch, totals.attended, totals.prompt, totals.pairs))
    tokens, sequences = batch[:, None] + prompt, batch[:, None] + np.minimum(prompt, 1.0)
    work = law.gemm(tokens) + law.pair_s * pairs + law.sequence_s * sequences
    spent = law.step_j + law.gemm_energy(tokens) + law.pair_j * pairs + law.sequence_j * sequences
    rows, each = len(batch) * len(attended), max(1, size // len(prompt))
    for first in range(0, rows, each):
        of_batch, of_context = np.divmod(np.arange(first, min(first + each, rows)), len(attended))
        read = (batch[of_batch] * attended[of_context])[:, None]
        seconds, joules = work[of_batch], spent[of_batch]
        seconds += law.kv_s * read
        np.maximum(seconds, law.floor_s, out=seconds)
        seconds += law.overhead_s
        joules += law.kv_j * read
        joules += law.idle_w * seconds
        yield GridChunk(first * len(prompt), seconds.ravel(), joules.ravel())


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
        Steps evaluated at once. By the full model a step takes some 500 bytes meanwhile; a law takes whole rows of prompts.

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
        parameters, totals = replica_parameters(llm, tier, tp=tp), jax.tree.map(_padded, totals)
        for start in range(0, axes.num_points, chunk_points):
            yield _model_chunk(parameters, totals, axes.shape, start, chunk_points)
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
    shape = (len(tiers), len(tps), axes.num_points)
    seconds, joules = np.empty(shape), np.empty(shape)
    for i, tier in enumerate(tiers):
        for j, tp in enumerate(tps):
            for chunk in grid_chunks(llm, tier, axes, tp=tp, by=by, chunk_points=chunk_points):
                end = chunk.start + len(chunk.seconds)
                seconds[i, j, chunk.start : end], joules[i, j, chunk.start : end] = chunk.seconds, chunk.joules
    whole = (len(tiers), len(tps), *axes.shape)
    return GridCosts(seconds.reshape(whole), joules.reshape(whole))
