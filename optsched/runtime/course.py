"""What the controller knows of where one conversation is."""

from __future__ import annotations

from dataclasses import dataclass, field

from optsched.placement.view import Away


@dataclass(frozen=True, slots=True)
class Held:
    """A cache that waits where it is for where to go: since when, its kind and its tokens."""

    time_s: float
    cache: int
    context: int


@dataclass(slots=True)
class Course:
    """Where one conversation is; -1: nowhere.

    Attributes
    ----------
    turn
        Its current turn.
    at
        The replica that computes it, holds it between turns, or will when its cache has come.
    leaving, arrived, transfer
        The replica that its cache moves away from, whether it has come, and the hand-over's number.
    copy_at, copied
        The replica that keeps a copy, and what the copy is of.
    held
        Its cache, while it waits for where to go.
    away
        Where its turn is computed, if not where its cache was; until its first token is out.
    awaited
        Replicas that have not said yet that they dropped it, with the number of what they were told.
    due
        Its next turn, if that has arrived too early.
    homeless
        Whether it is between two turns, and its cache lost.
    evicted
        Whether its cache was evicted between two turns.
    done
        Whether it has ended.
    """

    turn: int
    at: int = -1
    leaving: int = -1
    arrived: bool = False
    transfer: int = -1
    copy_at: int = -1
    copied: Held | None = None
    held: Held | None = None
    away: Away | None = None
    awaited: dict[int, int] = field(default_factory=dict)
    due: int = -1
    homeless: bool = False
    evicted: bool = False
    done: bool = False

    def holders(self) -> set[int]:
        """Return the replicas that have something of it."""
        return {self.at, self.leaving, self.copy_at} - {-1}

    def depends_on(self, replica: int) -> bool:
        """Tell whether it cannot go on without a replica."""
        target = self.away is not None and replica in (self.away.prefill, self.away.decode)
        return replica in (self.at, self.copy_at) or (replica == self.leaving and not self.arrived) or target
