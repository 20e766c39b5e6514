"""The smooth roofline that every law shares: a differentiable maximum, and the card it is applied to."""

from __future__ import annotations

from dataclasses import fields
from typing import Self

import equinox as eqx
import jax.numpy as jnp

from optsched.cost.precision import Scalar, scalar
from optsched.domain.frozen import Frozen

ROOFLINE_BLEND = 0.1  # where compute and memory take equally long, neither hides the other fully: 10 % more than either


class Card(eqx.Module):
    """What a law needs of a card.

    Attributes
    ----------
    flops_per_s
        Datasheet peak at the data type of the operation.
    memory_bytes_per_s
        Datasheet peak.
    clock
        Share of the uncapped clock; it slows compute and leaves the memory's own clock.
    """

    flops_per_s: Scalar
    memory_bytes_per_s: Scalar
    clock: Scalar


class LawParameters(eqx.Module):
    """The coefficients of a law as float64 scalars that JAX traces; subclasses name them as the law's record does."""

    @classmethod
    def of(cls, law: Frozen) -> Self:
        """Take the coefficients from a law's record."""
        return cls(**{field.name: scalar(getattr(law, field.name)) for field in fields(cls)})


def smooth_max(first: Scalar, second: Scalar, blend: float | Scalar) -> Scalar:
    """Return a differentiable maximum of two non-negative numbers.

    Parameters
    ----------
    first, second
        The numbers.
    blend
        In [0, 1]: at equal inputs the result is ``1 + blend`` times their value.

    Notes
    -----
    ``(a + b + sqrt((a - b)^2 + 4 blend^2 a b)) / 2``: at least the maximum, equal to it where either is 0, homogeneous, and
    non-decreasing in both. The constant under the root keeps the gradient finite at a = b = 0.
    """
    root = jnp.sqrt((first - second) ** 2 + 4.0 * blend**2 * first * second + 1e-60)
    return 0.5 * (first + second + root)


def power_norm(first: Scalar, second: Scalar, order: float | Scalar) -> Scalar:
    """Return the p-norm of two non-negative numbers: their sum at order 1, nearly the larger one at a large order.

    Notes
    -----
    Scaled by the larger one so that powers neither overflow nor vanish; the constant keeps gradients finite at 0.
    """
    first, second = first + 1e-15, second + 1e-15
    largest = jnp.maximum(first, second)
    norm: Scalar = largest * ((first / largest) ** order + (second / largest) ** order) ** (1.0 / order)
    return norm
