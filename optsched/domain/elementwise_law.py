"""The coefficients that turn the bytes of a pass over memory into its time on a card."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Seconds


class ElementwiseLaw(Frozen):
    """Norms, activations, rotations, copies: they read and write memory.

    Attributes
    ----------
    memory
        Share of the peak bandwidth that large passes reach.
    cache_bytes, cache_saving
        A pass over fewer bytes finds them in the card's cache, and takes a share of `cache_saving` less.
    launch_s
        Time of a kernel that has nothing to do.
    """

    memory: float = Field(default=0.8, gt=0, le=1)
    cache_bytes: float = Field(default=3e7, gt=0)
    cache_saving: float = Field(default=0.3, gt=0, lt=1)
    launch_s: Seconds = Field(default=2e-6, ge=0)
    fit: Fit | None = None
