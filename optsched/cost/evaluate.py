"""Evaluate the full cost model on many steps or configurations at once, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float64

from optsched.cost.features import StepFeatures
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import step_cost
from optsched.cost.tier import TierParameters

Array = np.ndarray
ModuleT = TypeVar("ModuleT", TierParameters, LlmShape, StepFeatures)
_BLOCKS = (16, 1024)  # rows that are evaluated at once: two sizes, because each takes seconds to compile


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Costs of S steps.

    Attributes
    ----------
    seconds
        Duration, the time until the next step can start included.
    work_s
        The device's time for the operations alone.
    joules, dynamic_j
        Energy of all GPUs, and the part of it above idle.
    """

    seconds: Float64[Array, " S"]
    work_s: Float64[Array, " S"]
    joules: Float64[Array, " S"]
    dynamic_j: Float64[Array, " S"]


def _costs(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    cost = step_cost(tier, shape, features)
    return cost.seconds, cost.work_s, cost.joules, cost.dynamic_j


_many_steps = jax.jit(jax.vmap(_costs, in_axes=(None, None, 0)))
_many_configurations = jax.jit(jax.vmap(_costs))


def stack(modules: Sequence[ModuleT]) -> ModuleT:
    """Return modules of scalars as one module of arrays, the first axis counting them."""
    stacked: ModuleT = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *modules)
    return stacked


def blocks(num_rows: int) -> list[slice]:
    """Return the blocks of `_BLOCKS` rows that N rows are evaluated in; the last one may reach beyond them."""
    size = next((size for size in _BLOCKS if num_rows <= size), _BLOCKS[-1])
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def block_of(module: ModuleT, rows: slice) -> ModuleT:
    """Return some rows of a module of arrays; where these end, the last one repeats."""

    def some(leaf: Scalar) -> Array:
        found = np.asarray(leaf)[rows]
        return np.pad(found, (0, rows.stop - rows.start - len(found)), mode="edge")

    chosen: ModuleT = jax.tree.map(some, module)
    return chosen


def _costs_of(function: Callable[[slice], tuple[Scalar, ...]], num_rows: int) -> StepCosts:
    parts = [[np.asarray(each) for each in function(rows)] for rows in blocks(num_rows)]
    return StepCosts(*(np.concatenate(columns)[:num_rows] for columns in zip(*parts, strict=True)))


@double_precision
def evaluate_steps(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> StepCosts:
    """Return the costs of S steps of one replica.

    Parameters
    ----------
    tier, shape
        Scalars.
    features
        Arrays of length S.
    """
    num_steps = len(np.asarray(features.pairs))
    return _costs_of(lambda rows: _many_steps(tier, shape, block_of(features, rows)), num_steps)


@double_precision
def evaluate_configurations(tiers: TierParameters, shapes: LlmShape, features: StepFeatures) -> StepCosts:
    """Return the costs of S (tier, llm, step) configurations.

    Parameters
    ----------
    tiers, shapes, features
        Arrays of length S each (`stack`).
    """
    num_steps = len(np.asarray(features.pairs))

    def block(rows: slice) -> tuple[Scalar, ...]:
        costs: tuple[Scalar, ...] = _many_configurations(block_of(tiers, rows), block_of(shapes, rows), block_of(features, rows))
        return costs

    return _costs_of(block, num_steps)
