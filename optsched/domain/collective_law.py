"""How near the collectives of a group of GPUs come to the numbers of the link between them."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Bytes

GROUPS = (2, 4, 8)  # sizes that coefficients are given at; between them they are interpolated in log2
Share = Annotated[float, Field(gt=0, le=2)]
Hops = Annotated[float, Field(ge=0)]


class ExchangeLaw(Frozen):
    """One kind of collective among 2, 4 and 8 GPUs; the defaults are one message at the datasheet's rate.

    Latencies are in units of the link's. `optsched.cost.collectives.exchange_s` has the formula.

    Attributes
    ----------
    hops, bandwidth
        Of small messages: latency, and share of the link's bandwidth, counted in the bytes that a ring would send. A switch
        that sums on its way sends fewer, so the share can exceed 1.
    two_shot_hops
        What a second round costs, where a kernel can also send everything to everybody at once.
    ring_hops, ring_bandwidth, ring_ramp
        Of large messages: latency, share of the bandwidth, and how much of the pipeline's fill and drain shows (0: none;
        1: that of the best piece size).
    switch_bytes
        Size at which an engine passes from the one to the other.
    fit
        Where the numbers come from; None: assumed.
    """

    hops: tuple[Hops, Hops, Hops] = (1.0, 1.0, 1.0)
    two_shot_hops: float = Field(default=0.0, ge=0)
    bandwidth: tuple[Share, Share, Share] = (1.0, 1.0, 1.0)
    ring_hops: tuple[Hops, Hops, Hops] = (1.0, 1.0, 1.0)
    ring_ramp: float = Field(default=0.0, ge=0)
    ring_bandwidth: tuple[Share, Share, Share] = (1.0, 1.0, 1.0)
    switch_bytes: tuple[Bytes, Bytes, Bytes] = (8388608.0, 8388608.0, 8388608.0)
    fit: Fit | None = None

    @model_validator(mode="after")
    def _switches_are_sizes(self) -> Self:
        if min(self.switch_bytes) <= 0:
            raise ValueError(f"switch_bytes {min(self.switch_bytes):g} must be positive")
        return self

    def at(self, gpus: float) -> dict[str, float]:
        """Return the coefficients for a group of some GPUs, by name.

        Parameters
        ----------
        gpus
            Between the sizes given, everything is linear in log2; below the smallest it is that one's; beyond the largest,
            latencies go on as they grew last and the rest stays.
        """
        place = math.log2(max(gpus, GROUPS[0])) - 1.0
        below = min(int(place), len(GROUPS) - 2)

        def value(of: tuple[float, float, float], furthest: float = math.inf) -> float:
            return of[below] + min(place - below, furthest) * (of[below + 1] - of[below])

        def hops(of: tuple[float, float, float]) -> float:
            # Larger groups are never quicker to start than the largest measured one.
            return max(value(of), of[-1]) if place > len(GROUPS) - 1 else value(of)

        return {
            "hops": hops(self.hops),
            "two_shot_hops": self.two_shot_hops,
            "bandwidth": value(self.bandwidth, 1.0),
            "ring_hops": hops(self.ring_hops),
            "ring_ramp": self.ring_ramp,
            "ring_bandwidth": value(self.ring_bandwidth, 1.0),
            "switch_bytes": value(self.switch_bytes, 1.0),
        }


def tree_law(rounds: float) -> ExchangeLaw:
    """Return the assumed law of a collective in ``rounds x log2 p`` dependent messages at the datasheet's rate.

    Notes
    -----
    Double binary trees sum in ``2 log2 p`` messages (Sanders, Speck and Traff, Parallel Computing 35, 2009).
    """
    hops = tuple(rounds * math.log2(gpus) for gpus in GROUPS)
    return ExchangeLaw(hops=hops, ring_hops=hops)


class CollectiveLaw(Frozen):
    """The collectives over one kind of link; `all_reduce` and `send` are also those between nodes."""

    all_reduce: ExchangeLaw = tree_law(2.0)
    all_gather: ExchangeLaw = tree_law(1.0)
    reduce_scatter: ExchangeLaw = tree_law(1.0)
    all_to_all: ExchangeLaw = tree_law(1.0)
    send: ExchangeLaw = ExchangeLaw()
