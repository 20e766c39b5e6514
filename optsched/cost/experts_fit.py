"""Fit the law of routed experts to measured layers."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from optsched.cost.experts import ExpertsParameters, experts_s
from optsched.cost.fit import Fitted, Provenance, fit_law
from optsched.cost.precision import double_precision, scalar
from optsched.cost.rates import peak_flops_per_s
from optsched.cost.roofline import Card
from optsched.cost.split import Split, experts_of_heldout_llm, split
from optsched.domain.dtypes import DTYPE_BYTES
from optsched.domain.experts_law import ExpertsLaw
from optsched.domain.hardware import Tier
from optsched.profiles.experts import ExpertRows

ACTIVATION_BYTES = 2.0  # 8-bit and 4-bit llms keep 16-bit activations between kernels


class ExpertShapes(eqx.Module):
    """The columns of `ExpertRows` that the law depends on, of one GPU."""

    tokens: Float[jax.Array, " N"]
    rows: Float[jax.Array, " N"]
    touched: Float[jax.Array, " N"]
    passed_rows: Float[jax.Array, " N"]
    hidden_size: Float[jax.Array, " N"]
    expert_size: Float[jax.Array, " N"]
    matrices: Float[jax.Array, " N"]


def shapes(rows: ExpertRows) -> ExpertShapes:
    """Return what the law depends on; a GPU that sees all tokens passes the rows of all GPUs through its memory."""
    return ExpertShapes(
        tokens=jnp.asarray(rows.tokens),
        rows=jnp.asarray(rows.rows),
        touched=jnp.asarray(rows.touched),
        passed_rows=jnp.asarray(rows.tokens * rows.experts_per_token),
        hidden_size=jnp.asarray(rows.hidden_size, jnp.float64),
        expert_size=jnp.asarray(rows.expert_size / rows.tp),
        matrices=jnp.asarray(rows.matrices, jnp.float64),
    )


def predicted_s(law: ExpertsParameters, card: Card, rows: ExpertShapes, weight_bytes: float) -> Float[jax.Array, " N"]:
    """Return what a law predicts for measured layers in seconds."""
    return experts_s(
        law, card, rows.tokens, rows.rows, rows.touched, rows.passed_rows, rows.hidden_size, rows.expert_size, rows.matrices,
        scalar(weight_bytes), scalar(ACTIVATION_BYTES),
    )  # fmt: skip


def experts_split(rows: ExpertRows) -> Split:
    """Return which rows are fitted to, held out by their shape, or of a held-out llm."""
    llms = experts_of_heldout_llm(rows.hidden_size, rows.expert_size, rows.num_experts, rows.experts_per_token)
    return split(rows.keys(), llms)


@double_precision
def fit_experts(rows: ExpertRows, tier: Tier, date: str, *, ridge: float = 0.3) -> Fitted[ExpertsLaw]:
    """Fit the law of one data type's experts.

    Parameters
    ----------
    rows
        Measured on that tier, without those that found their weights in the cache (`ExpertRows.cold`).
    tier
        Whose datasheet the shares refer to, at its board power.
    date, ridge
        As in `fit_law`.

    Raises
    ------
    SpecError
        If the datasheet lists no FLOP rate for the data type.
    ProblemError
        If there are too few rows.
    """
    card = Card(scalar(peak_flops_per_s(tier, rows.dtype)), scalar(tier.gpu.datasheet.memory_bytes_per_s), scalar(1.0))
    weight_bytes = DTYPE_BYTES[rows.dtype]
    return fit_law(
        ExpertsLaw(),
        ExpertsParameters,
        lambda law, some: predicted_s(law, card, some, weight_bytes),
        shapes(rows),
        rows.seconds,
        experts_split(rows),
        Provenance(rows.source, date, rows.left_out),
        ridge=ridge,
    )
