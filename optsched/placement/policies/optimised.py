"""Follow an offline plan: every conversation goes where it was assigned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optsched.errors import PlanError
from optsched.placement.policies.choice import least_backlogged, most_free
from optsched.placement.view import ConversationView, FleetView, Pinned, ReplicaView, Route


@dataclass(frozen=True, slots=True)
class Optimised(Pinned):
    """Send conversations to the replicas that an offline plan gave them; it knew arrivals and lengths, and says so.

    Each decoder has a queue of its own, as when the plan was timed. A conversation whose replica has died goes to the least
    backlogged prefiller, or the decoder of most free KV cache.

    Parameters
    ----------
    assignments
        Indices of the prefill and the decode replica by index of the conversation.
    """

    assignments: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def foresight(self) -> bool:
        """Whether the policy reads lengths that nobody knows in advance."""
        return True

    def reservation(self, conversation: ConversationView) -> int:
        """Return the tokens of KV cache to reserve on the decoder: the peak context."""
        return conversation.peak_tokens

    def queue(self, conversation: ConversationView) -> int:
        """Wait for the assigned decoder only: the plan let nobody wait for another's."""
        return self._assigned(conversation)[1]

    def prefill(self, conversation: ConversationView, fleet: FleetView) -> Route | None:
        """Return the assigned replicas; one that does both is reserved before the prefill, another when that has ended.

        Raises
        ------
        PlanError
            If the plan does not assign the conversation.
        """
        prefill, decode = self._assigned(conversation)
        replica = _by_index(fleet, prefill) or least_backlogged(fleet.prefillers())
        if replica is None:
            return None
        if replica.index != decode:
            return Route(replica.index)
        if not replica.fits(self.reservation(conversation)):
            return None
        return Route(replica.index, decode)

    def decode(self, conversation: ConversationView, fleet: FleetView, prefill: int) -> int | None:
        """Return the assigned decoder once the conversation fits; None: wait."""
        needed = self.reservation(conversation)
        assigned = _by_index(fleet, self._assigned(conversation)[1])
        if assigned is not None:
            return assigned.index if assigned.fits(needed) else None
        chosen = most_free(fleet.decoders(), needed)
        return None if chosen is None else chosen.index

    def _assigned(self, conversation: ConversationView) -> tuple[int, int]:
        try:
            return self.assignments[conversation.index]
        except KeyError as error:
            message = f"conversation {conversation.index} has no assignment; plan the same workload again"
            raise PlanError([message]) from error


def _by_index(fleet: FleetView, index: int) -> ReplicaView | None:
    replicas = fleet.replicas
    if index < len(replicas) and replicas[index].index == index:  # nobody before it has died
        return replicas[index]
    return next((replica for replica in replicas if replica.index == index), None)
