"""The two rankings that placement policies share: shortest prefill queue, and most free KV cache."""

from __future__ import annotations

from collections.abc import Iterable

from optsched.placement.view import ReplicaView


def least_backlogged(replicas: Iterable[ReplicaView]) -> ReplicaView | None:
    """Return the replica whose queued prefills take the least time, the lowest index first; None if there are none."""
    return min(replicas, key=lambda replica: (replica.backlog_s, replica.index), default=None)


def most_free(replicas: Iterable[ReplicaView], needed_tokens: int, headroom_tokens: int = 0) -> ReplicaView | None:
    """Return the replica with the most free KV tokens, the lowest index first; None if the need fits in none."""
    fitting = (replica for replica in replicas if replica.fits(needed_tokens, headroom_tokens))
    return min(fitting, key=lambda replica: (-replica.free_tokens, replica.index), default=None)
