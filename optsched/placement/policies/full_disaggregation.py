"""Full disaggregation: every turn is prefilled anew on a prefiller, and its cache handed to a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.placement.policies.choice import least_backlogged
from optsched.placement.policies.conserve import ConServe
from optsched.placement.view import Away, FleetView, TurnView


@dataclass(frozen=True, slots=True)
class FullDisaggregation(ConServe):
    """Treat every turn as ConServe treats the first: nothing that was cached is used again.

    Each turn computes everything said so far on the least backlogged prefiller and moves all of it to the decoder of most free
    KV cache. Parameters as of `ConServe`; what they reserve counts from the turn's whole prompt.

    References
    ----------
    .. [1] "Full Disagg" of arXiv 2606.01839; one prefiller and no reuse in its artifact.
    """

    @property
    def per_turn(self) -> bool:
        """Every turn leaves."""
        return True

    def later_turn(self, turn: TurnView, fleet: FleetView) -> Away | None:
        """Choose the prefiller whose queue is shortest in seconds; the decoder is chosen later."""
        chosen = least_backlogged(fleet.prefillers())
        return None if chosen is None else Away(chosen.index, None, reuse=False)
