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
_SMALLEST = 16  # rows are padded to a power of two from here on, so that few sizes are ever compiled


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


def _padded(module: ModuleT, size: int) -> ModuleT:
    grown: ModuleT = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, size - len(leaf)), mode="edge"), module)
    return grown


def _costs_of(function: Callable[..., tuple[Scalar, ...]], modules: tuple[object, ...], num_rows: int) -> StepCosts:
    return StepCosts(*(np.asarray(each)[:num_rows] for each in function(*modules)))


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
    size = max(_SMALLEST, 1 << (num_steps - 1).bit_length())
    return _costs_of(_many_steps, (tier, shape, _padded(features, size)), num_steps)


@double_precision
def evaluate_configurations(tiers: TierParameters, shapes: LlmShape, features: StepFeatures) -> StepCosts:
    """Return the costs of S (tier, llm, step) configurations.

    Parameters
    ----------
    tiers, shapes, features
        Arrays of length S each (`stack`).
    """
    num_steps = len(np.asarray(features.pairs))
    size = max(_SMALLEST, 1 << (num_steps - 1).bit_length())
    modules = (_padded(tiers, size), _padded(shapes, size), _padded(features, size))
    return _costs_of(_many_configurations, modules, num_steps)
