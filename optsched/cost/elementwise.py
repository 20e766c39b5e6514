"""Passes over memory without matrix products: norms, activations, rotations, copies, sampling."""

from __future__ import annotations

from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card, LawParameters


class ElementwiseParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.ElementwiseLaw`."""

    memory: Scalar
    launch_s: Scalar


def elementwise_s(law: ElementwiseParameters, card: Card, kernels: Scalar, moved_bytes: Scalar) -> Scalar:
    """Return the time of some kernels on one GPU in seconds.

    Parameters
    ----------
    law, card
        Of the card; no data type matters.
    kernels
        How many kernels follow one another.
    moved_bytes
        Bytes that they read and write in all.
    """
    return kernels * law.launch_s + moved_bytes / (card.memory_bytes_per_s * law.memory)
