"""How near the collectives of a group of GPUs come to the numbers of the link between them."""

from __future__ import annotations

import math

from pydantic import Field

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Bytes


class ExchangeLaw(Frozen):
    """One kind of collective in a group of one size; the defaults are one message at the datasheet's rate.

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
        Size at which an engine passes from the one to the other; the default is never reached.
    fit
        Where the numbers come from; None: assumed.
    """

    hops: float = Field(default=1.0, ge=0)
    two_shot_hops: float = Field(default=0.0, ge=0)
    bandwidth: float = Field(default=1.0, gt=0, le=2)
    ring_hops: float = Field(default=1.0, ge=0)
    ring_ramp: float = Field(default=0.0, ge=0)
    ring_bandwidth: float = Field(default=1.0, gt=0, le=2)
    switch_bytes: Bytes = Field(default=1e15, gt=0)
    fit: Fit | None = None


COEFFICIENTS = tuple(name for name in ExchangeLaw.model_fields if name != "fit")


class GroupLaws(Frozen):
    """One kind of collective in groups of 2, 4 and 8 GPUs."""

    two: ExchangeLaw = ExchangeLaw()
    four: ExchangeLaw = ExchangeLaw()
    eight: ExchangeLaw = ExchangeLaw()

    def at(self, gpus: float) -> ExchangeLaw:
        """Return the law of a group of some GPUs.

        Parameters
        ----------
        gpus
            Between the sizes given, everything is linear in log2; below 2 it is that of 2; beyond 8, latencies go on as they
            grew last, if they did, and the rest stays.
        """
        place = math.log2(max(gpus, 2.0)) - 1.0
        low, high = (self.two, self.four) if place < 1.0 else (self.four, self.eight)
        part = place - (0.0 if place < 1.0 else 1.0)
        if part in (0.0, 1.0):
            return high if part else low

        def value(name: str) -> float:
            start, end = float(getattr(low, name)), float(getattr(high, name))
            if part <= 1.0:
                return start + part * (end - start)
            return end + (part - 1.0) * max(end - start, 0.0) if name.endswith("hops") else end

        return ExchangeLaw.model_validate({name: value(name) for name in COEFFICIENTS})


def tree_laws(rounds: float) -> GroupLaws:
    """Return the assumed laws of a collective in ``rounds x log2 p`` dependent messages at the datasheet's rate.

    Notes
    -----
    Double binary trees sum in ``2 log2 p`` messages (Sanders, Speck and Traff, Parallel Computing 35, 2009).
    """
    two, four, eight = (ExchangeLaw(hops=rounds * depth, ring_hops=rounds * depth) for depth in (1.0, 2.0, 3.0))
    return GroupLaws(two=two, four=four, eight=eight)


class CollectiveLaw(Frozen):
    """The collectives over one kind of link; `all_reduce` and `send` are also those between nodes."""

    all_reduce: GroupLaws = tree_laws(2.0)
    all_gather: GroupLaws = tree_laws(1.0)
    reduce_scatter: GroupLaws = tree_laws(1.0)
    all_to_all: GroupLaws = tree_laws(1.0)
    send: ExchangeLaw = ExchangeLaw()
