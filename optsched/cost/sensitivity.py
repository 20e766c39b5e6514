"""What a tier's time is sensitive to: elasticities by automatic differentiation."""

from __future__ import annotations

from dataclasses import fields

import jax
import jax.numpy as jnp

from optsched.cost.features import StepFeatures
from optsched.cost.precision import Scalar, double_precision
from optsched.cost.roofline import LawParameters
from optsched.cost.shape import LlmShape
from optsched.cost.step import step_time
from optsched.cost.tier import TierParameters

FIELDS = (
    "flops_per_s",
    "memory_bytes_per_s",
    "link_bytes_per_s",
    "link_latency_s",
    "network_bytes_per_s",
    "network_latency_s",
    "layer_overhead_s",
    "step_overhead_s",
    "sequence_overhead_s",
    "cap_w",
)
LAUNCHED = ("gemm", "prefill_attention", "decode_attention", "experts", "elementwise")


def _total_s(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> Scalar:
    return jnp.log(jax.vmap(step_time, in_axes=(None, None, 0))(tier, shape, features).sum())


_gradient = jax.jit(jax.grad(_total_s))


@double_precision
def elasticities(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, float]:
    """Return d log(time) / d log(field) of the steps' total time, by tier field.

    Parameters
    ----------
    tier, shape
        Scalars.
    features
        One step, or S steps.

    Returns
    -------
    dict
        -0.8 for ``memory_bytes_per_s`` means: 10 % more bandwidth saves about 8 % of the time. ``launch_s`` is that of all
        kernels together, walks and other times that their laws count included.
    """
    gradient = _gradient(tier, shape, features.rows())
    found = {name: float(getattr(gradient, name)) * float(getattr(tier, name)) for name in FIELDS}
    return {**found, "launch_s": sum(_times(getattr(gradient, name), getattr(tier, name)) for name in LAUNCHED)}


def _times(gradient: LawParameters, law: LawParameters) -> float:
    """Return the elasticity of all times of a law together."""
    names = [field.name for field in fields(law) if field.name.endswith("_s")]
    return sum(float(getattr(gradient, name)) * float(getattr(law, name)) for name in names)
