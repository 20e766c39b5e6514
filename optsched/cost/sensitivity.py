"""What a replica's time is sensitive to: elasticities by automatic differentiation, and what a tenth more of a resource buys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optsched.cost.evaluate import block_of, blocks, evaluate_steps
from optsched.cost.features import StepFeatures, spread
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import step_time
from optsched.cost.tier import TierParameters

RESOURCES = {
    "compute": ("flops_per_s",),
    "memory_bandwidth": ("memory_bytes_per_s",),
    "link_bandwidth": ("link_bytes_per_s", "network_bytes_per_s"),
    "link_latency": ("link_latency_s", "network_latency_s"),
    "overheads": ("layer_overhead_s", "step_overhead_s", "sequence_overhead_s", "launch_s"),
    "power_cap": ("cap_w",),
}
MORE = 1.1
MOST_STEPS = 1024  # the costs of a prefill's chunks change evenly


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a resource does to the time of some steps.

    Attributes
    ----------
    elasticity
        d log(time) / d log(resource): -0.8 means that a little more of it saves 0.8 times as much of the time.
    change
        Time with a tenth more of it, over the time as it is, less one. A power cap is raised to the board's limit at most.
    """

    elasticity: float
    change: float


def _name(path: tuple[object, ...]) -> str:
    return ".".join(getattr(part, "name", str(part)) for part in path)


def _resource(name: str) -> str | None:
    """Return the resource that a number of the tier belongs to; launch times of all laws are overheads."""
    last = name.rpartition(".")[2]
    return next((resource for resource, fields in RESOURCES.items() if name in fields or ("." in name and last in fields)), None)


@jax.jit
def _slopes(tier: TierParameters, shape: LlmShape, features: StepFeatures, counted: Scalar) -> tuple[Scalar, Scalar]:
    """Return the total time of the steps that count, and its derivative in every number of the tier.

    Notes
    -----
    Forward mode, one number at a time: there are a hundred of them and evaluating is cheap, while the reverse mode takes
    twice as long to compile.
    """
    leaves, structure = jax.tree.flatten(tier)

    def total_s(numbers: Scalar) -> Scalar:
        moved = jax.tree.unflatten(structure, list(numbers))
        return (jax.vmap(step_time, in_axes=(None, None, 0))(moved, shape, features) * counted).sum()

    numbers = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    totals, slopes = jax.vmap(lambda way: jax.jvp(total_s, (numbers,), (way,)))(jnp.eye(len(leaves)))
    return totals[0], slopes


@double_precision
def elasticities(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, float]:
    """Return d log(time) / d log(number) of the steps' total time, for every number of the tier.

    Parameters
    ----------
    tier, shape
        Scalars.
    features
        One step, or S steps, of which `MOST_STEPS` evenly spaced ones stand for more.

    Returns
    -------
    dict
        By name, those of laws as ``gemm.memory``.
    """
    rows = spread(features, MOST_STEPS)
    number = len(np.asarray(rows.pairs))
    (block,) = blocks(number)
    counted = cast(Scalar, (np.arange(block.stop) < number).astype(np.float64))
    total_s, slopes = _slopes(tier, shape, block_of(rows, block), counted)
    named = jax.tree_util.tree_leaves_with_path(tier)
    return {_name(path): float(slope) * float(leaf) / float(total_s) for (path, leaf), slope in zip(named, slopes, strict=True)}


def _with_more(tier: TierParameters, resource: str) -> TierParameters:
    def more(path: tuple[object, ...], leaf: Scalar) -> Scalar:
        return leaf * MORE if _resource(_name(path)) == resource else leaf

    raised: TierParameters = jax.tree_util.tree_map_with_path(more, tier)
    capped: TierParameters = eqx.tree_at(lambda each: each.cap_w, raised, np.minimum(raised.cap_w, tier.board_w))
    return capped


@double_precision
def sensitivities(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, Sensitivity]:
    """Return what each resource does to the steps' total time.

    Parameters
    ----------
    tier, shape
        Scalars.
    features
        One step, or S steps, as in `elasticities`.

    Returns
    -------
    dict
        By resource: ``compute``, ``memory_bandwidth``, ``link_bandwidth``, ``link_latency``, ``overheads`` (of the step, its
        layers and sequences, and the launch times of all laws), ``power_cap``.
    """
    slopes, rows = elasticities(tier, shape, features), spread(features, MOST_STEPS)
    now = evaluate_steps(tier, shape, rows).seconds.sum()
    return {
        resource: Sensitivity(
            elasticity=sum(slope for name, slope in slopes.items() if _resource(name) == resource),
            change=float(evaluate_steps(_with_more(tier, resource), shape, rows).seconds.sum() / now - 1.0),
        )
        for resource in RESOURCES
    }
