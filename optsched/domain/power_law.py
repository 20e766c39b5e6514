"""How a card's power follows what it does, and its clock what a power cap allows."""

from __future__ import annotations

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen


class PowerLaw(Frozen):
    """Power of one card while steps run, in shares of what its board's limit leaves above idle.

    Attributes
    ----------
    active
        Drawn for as long as a step runs, whatever it does: clocks are up, also while kernels are launched.
    gemm, attention
        Drawn by matrix products, and by attention, at the datasheet's peak FLOP rate. They reach a part of the rate, hence
        values above 1.
    memory
        Drawn by reading at the datasheet's peak bandwidth.
    clock_linear, clock_exponent
        Dynamic power at a clock f (1: the full one) is ``a f + (1 - a) f^m`` of that at the full clock.
    sharpness
        k of ``(demand^-k + cap^-k)^(-1/k)``: how closely a card comes up to its cap.

    Notes
    -----
    The defaults are what fits A100-80GB (its file says how well), rounded; shares carry over to other cards of servers. How
    clocks follow power was fitted on A40 alone; its default is assumed.
    """

    active: float = Field(default=0.14, gt=0, le=1)
    gemm: float = Field(default=1.15, gt=0)
    attention: float = Field(default=2.0, gt=0)
    memory: float = Field(default=0.92, gt=0)
    clock_linear: float = Field(default=0.5, gt=0, le=1)
    clock_exponent: float = Field(default=8.0, ge=1)
    sharpness: float = Field(default=7.3, ge=1)
    fit: Fit | None = None

    def clock(self, power_share: float) -> float:
        """Return the clock, as a share of the full one, at which dynamic power is a share of that at the full clock."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            power = self.clock_linear * middle + (1 - self.clock_linear) * middle**self.clock_exponent
            low, high = (middle, high) if power < power_share else (low, middle)
        return high
