"""What a replica's time is sensitive to: elasticities by automatic differentiation, and what a tenth more of a resource buys."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optsched.cost.features import StepFeatures
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
_SMALLEST = 16


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


def _log_total_s(tier: TierParameters, shape: LlmShape, features: StepFeatures, counted: Scalar) -> Scalar:
    return jnp.log((jax.vmap(step_time, in_axes=(None, None, 0))(tier, shape, features) * counted).sum())


_value = jax.jit(_log_total_s)
_gradient = jax.jit(jax.grad(_log_total_s))


def _padded(features: StepFeatures) -> tuple[StepFeatures, Scalar]:
    """Continue steps to a power of two, for a derivative takes long to compile; and tell which of them count."""
    rows = features.rows()
    number = len(np.asarray(rows.pairs))
    size = max(_SMALLEST, 1 << (number - 1).bit_length())
    grown: StepFeatures = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, size - number), mode="edge"), rows)
    return grown, jnp.asarray(np.arange(size) < number, dtype=float)


@double_precision
def elasticities(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, float]:
    """Return d log(time) / d log(number) of the steps' total time, for every number of the tier.

    Parameters
    ----------
    tier, shape
        Scalars.
    features
        One step, or S steps.

    Returns
    -------
    dict
        By name, those of laws as ``gemm.memory``.
    """
    gradient = jax.tree.leaves(_gradient(tier, shape, *_padded(features)))
    named = jax.tree_util.tree_leaves_with_path(tier)
    return {_name(path): float(slope) * float(leaf) for (path, leaf), slope in zip(named, gradient, strict=True)}


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
        One step, or S steps.

    Returns
    -------
    dict
        By resource: ``compute``, ``memory_bandwidth``, ``link_bandwidth``, ``link_latency``, ``overheads`` (of the step, its
        layers and sequences, and the launch times of all laws), ``power_cap``.
    """
    slopes, rows = elasticities(tier, shape, features), _padded(features)
    now = float(_value(tier, shape, *rows))
    return {
        resource: Sensitivity(
            elasticity=sum(slope for name, slope in slopes.items() if _resource(name) == resource),
            change=float(np.expm1(float(_value(_with_more(tier, resource), shape, *rows)) - now)),
        )
        for resource in RESOURCES
    }
