"""Schedulers that place each turn by what they predict of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from optsched.errors import SpecError
from optsched.placement.policies.choice import least_backlogged
from optsched.placement.policies.conserve import ConServe
from optsched.placement.view import Away, FleetView, ReplicaView, TurnView


@dataclass(frozen=True, slots=True)
class PerTurn(ConServe):
    """Compute each later turn where it is predicted to end soonest and to delay others least.

    First turns are placed as by `ConServe`. A later turn may stay with its cache; visit a prefiller, which gets a copy of the
    cache and sends back what the new tokens added; or move to another decoder for good. Each way is charged with the time until
    the turn ends (transfers, the prefiller's queue, the new tokens, and the predicted output at the present duration of a
    decode step there) and, on a decoder, once more with the new tokens' time for each conversation that they hold up.
    The output's length is foresight; `error` makes a prediction of it.

    Parameters
    ----------
    error
        Standard deviation of the logarithm of predicted over true output tokens; predictions are right on average. 0: the
        truth.
    seed
        Of the predictions: the same conversation and turn are always predicted alike.

    References
    ----------
    .. [1] AMPD, arXiv 2602.14516, decides per round by the load where the incremental prefill runs; its rule is not public in
       detail, this one is this project's own.
    """

    error: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse a negative reservation or error."""
        ConServe.__post_init__(self)
        if self.error < 0:
            raise SpecError(f"{self.error}: must not be negative; 0 predicts the truth", field="error")

    @property
    def foresight(self) -> bool:
        """Predictions are made from the truth."""
        return True

    @property
    def per_turn(self) -> bool:
        """Every turn is placed by itself."""
        return True

    @property
    def timed(self) -> bool:
        """It asks how long steps take."""
        return True

    def predicted_tokens(self, turn: TurnView) -> float:
        """Return the output tokens that are predicted of a turn."""
        if self.error == 0:
            return float(turn.output_tokens)
        z = NormalDist().inv_cdf(drawn(self.seed, turn.conversation.index, turn.number))
        return turn.output_tokens * math.exp(self.error * z - self.error**2 / 2)

    def later_turn(self, turn: TurnView, fleet: FleetView) -> Away | None:
        """Choose the way that costs least; staying wins ties."""
        predicted = self.predicted_tokens(turn)
        home = next((replica for replica in fleet.replicas if replica.index == turn.home), None)
        if home is None:
            return None
        away: Away | None = None
        least_s = turn.append_s[turn.home] * (1 + home.conversations) + predicted * home.step_s
        for replica in fleet.replicas:
            if replica.index == turn.home:
                continue
            cost_s, way = self._away(turn, replica, home, predicted)
            if cost_s < least_s:
                least_s, away = cost_s, way
        return away

    def _away(self, turn: TurnView, replica: ReplicaView, home: ReplicaView, predicted: float) -> tuple[float, Away]:
        """Return what it costs to visit a prefiller, or to move to another decoder."""
        index = replica.index
        if replica.role == "prefill":
            visit_s = turn.move_s[index] + replica.backlog_s + turn.append_s[index] + turn.return_s[index]
            return visit_s + predicted * home.step_s, Away(index, turn.home, reuse=True)
        moved_s = turn.move_s[index] + turn.append_s[index] * (1 + replica.conversations) + predicted * replica.step_s
        fits = replica.fits(turn.context_tokens + turn.new_tokens, self.extra_tokens)
        return (moved_s if fits else math.inf), Away(index, index, reuse=True)


@dataclass(frozen=True, slots=True)
class PerTurnEmulated(ConServe):
    """A per-turn scheduler as ConServe's authors emulate it: ConServe, with a share of later turns sent away wrongly.

    A turn that is sent away visits the least backlogged prefiller: its cache is copied there, the new tokens wait in the queue,
    are computed, and what they added is sent back. It stays where the prefiller has no room for it (`Dispatcher.later_turn`). The
    artifact pauses the conversation for as long instead of moving anything.

    Parameters
    ----------
    wrong_share
        Share of later turns that are sent away.
    seed
        Of the draws: the same conversation and turn are always decided alike.

    References
    ----------
    .. [1] "AMPD" in the evaluation of arXiv 2606.01839 (artifact: 10 % wrong decisions).
    """

    wrong_share: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse a negative reservation, or what is no share."""
        ConServe.__post_init__(self)
        if not 0 <= self.wrong_share <= 1:
            raise SpecError(f"{self.wrong_share}: must be a share of the turns; give 0 to 1", field="wrong_share")

    @property
    def per_turn(self) -> bool:
        """Any later turn may leave."""
        return True

    def later_turn(self, turn: TurnView, fleet: FleetView) -> Away | None:
        """Send the turn away if the draw says so."""
        if drawn(self.seed, turn.conversation.index, turn.number) >= self.wrong_share:
            return None
        chosen = least_backlogged(replica for replica in fleet.replicas if replica.role == "prefill")
        return None if chosen is None else Away(chosen.index, turn.home, reuse=True)


def drawn(seed: int, conversation: int, turn: int) -> float:
    """Return a number in (0, 1), uniform over conversations and turns and always the same for one (SplitMix64 [1]_).

    References
    ----------
    .. [1] G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    mask = (1 << 64) - 1
    state = 0
    for part in (seed, conversation, turn):
        state = (state + part + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return ((state >> 11) + 0.5) / (1 << 53)
