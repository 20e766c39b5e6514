"""Passes over memory without matrix products: norms, activations, rotations, copies, sampling."""

from __future__ import annotations

import jax.numpy as jnp

from optsched.cost.gemm import uncached
from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters


class ElementwiseParameters(LawParameters):
    """Coefficients of a `optsched.domain.elementwise_law.ElementwiseLaw`."""

    memory: Scalar
    cache_bytes: Scalar
    cache_saving: Scalar
    launch_s: Scalar


def elementwise_s(law: ElementwiseParameters, card: Card, kernels: Scalar, moved_bytes: Scalar) -> Scalar:
    """Return the time of some kernels on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the card; no data type matters.
    kernels
        How many kernels follow one another; below 1, they are part of others and launch for nothing.
    moved_bytes
        Bytes that they read and write in all.

    Notes
    -----
    ``kernels launch + kernels uncached(bytes / kernels) / (memory W)``: the bytes are spread evenly over the kernels.
    """
    parts = jnp.maximum(kernels, 1.0)
    moved = parts * uncached(moved_bytes / parts, law.cache_bytes, law.cache_saving)
    return kernels * law.launch_s + moved / (card.memory_bytes_per_s * law.memory)
