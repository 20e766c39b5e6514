"""The messages of a step: collectives among the GPUs of a replica, and how often the step repeats each."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax.numpy as jnp

from optsched.cost import collectives
from optsched.cost.precision import Scalar
from optsched.cost.tier import TierParameters

SLOW_ONSET = 24.0  # how sharply messages leave the fast path with their size


class Communication(eqx.Module):
    """A collective of some GPUs on `num_bytes`; `count` times per step, one after another.

    For ``hand_over``, `gpus` is the share of the hand-overs that cross nodes.
    """

    count: Scalar
    num_bytes: Scalar
    gpus: Scalar
    kind: Literal["all_reduce", "all_gather", "all_to_all", "hand_over"] = eqx.field(static=True)

    def seconds(self, tier: TierParameters) -> Scalar:
        """Return the time of all of them in seconds."""
        times = {
            "all_reduce": collectives.all_reduce_s,
            "all_gather": collectives.all_gather_s,
            "all_to_all": collectives.all_to_all_s,
            "hand_over": collectives.hand_over_s,
        }
        once_s = times[self.kind](tier.collectives, tier.fabric, self.num_bytes, self.gpus) + tier.message_overhead_s
        return self.count * (once_s + self._slow_s(tier) if self.kind == "all_reduce" else once_s)

    def _slow_s(self, tier: TierParameters) -> Scalar:
        """Return what the part of an all-reduce that the engine sends off the fast path takes more: none between two GPUs."""
        large = (self.num_bytes / tier.slow_message_bytes) ** SLOW_ONSET
        hops = jnp.maximum(self.gpus - 2.0, 0.0) / self.gpus
        return hops * tier.slow_message_s_per_byte * self.num_bytes * large / (1.0 + large)

    @property
    def bytes(self) -> Scalar:
        """Bytes that each GPU sends in all of them."""
        if self.kind == "all_reduce":
            return self.count * collectives.all_reduce_bytes(self.num_bytes, self.gpus)
        if self.kind == "hand_over":
            return self.count * self.num_bytes
        return self.count * collectives.all_gather_bytes(self.num_bytes, self.gpus)
