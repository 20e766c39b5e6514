"""Which workers are alive, and whether all of them only wait for each other."""

from __future__ import annotations

from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import FromWorker, Ping, Pong, Report

_QUIET_S = 1.0  # a worker that computes reports several times a second, unless one step takes longer: then it answers late


class Watch:
    """Ask silent workers whether they live, and end those that do not answer.

    Parameters
    ----------
    fleet
        The workers.
    patience_s
        How long a worker may say nothing.
    """

    def __init__(self, fleet: Fleet, patience_s: float) -> None:
        self._fleet, self._patience_s = fleet, patience_s
        self._heard_s = dict.fromkeys(range(fleet.size), 0.0)
        self._asked_s = dict.fromkeys(range(fleet.size), 0.0)
        self._answered = dict.fromkeys(range(fleet.size), 0)
        self._fetching = dict.fromkeys(range(fleet.size), False)
        self._told_s = 0.0
        self._asked_all: tuple[float, int] = (-1.0, 0)
        self._number = 0

    @property
    def pause_s(self) -> float:
        """How long the controller may sleep between two looks."""
        return min(1.0, self._patience_s / 8)

    def heard(self, replica: int, now_s: float, message: FromWorker) -> None:
        """Note that a worker said something."""
        self._heard_s[replica] = now_s
        if isinstance(message, Pong):
            self._answered[replica], self._fetching[replica] = message.number, message.fetching
        elif isinstance(message, Report):
            self._told_s = now_s

    def look(self, now_s: float) -> None:
        """Ask those who were silent for a while, and end those who were silent for too long."""
        for replica, heard_s in self._heard_s.items():
            if not self._fleet.lives(replica):
                continue
            if now_s - max(heard_s, 0.0) > self._patience_s:
                self._fleet.kill(replica)
            elif now_s - max(heard_s, self._asked_s[replica]) > self._patience_s / 4:
                self._ask(replica, now_s)

    def stuck(self, now_s: float) -> bool:
        """Tell whether every worker says that it lives, and none has done anything for a while."""
        if now_s - self._told_s < _QUIET_S:
            return False
        asked_s, number = self._asked_all
        if asked_s <= self._told_s:
            self._asked_all = now_s, self._number + 1
            for replica in self._heard_s:
                if self._fleet.lives(replica):
                    self._ask(replica, now_s)
            return False
        living = [replica for replica in self._heard_s if self._fleet.lives(replica)]
        if all(self._answered[replica] >= number for replica in living):
            self._asked_all = -1.0, 0
            return not any(self._fetching[replica] for replica in living)
        return False

    def idle_s(self, now_s: float) -> float:
        """Return for how long no worker has done anything."""
        return now_s - self._told_s

    def restart(self, now_s: float) -> None:
        """Give what was just set in motion time to show."""
        self._told_s = now_s

    def _ask(self, replica: int, now_s: float) -> None:
        self._number += 1
        self._asked_s[replica] = now_s
        self._fleet.send(replica, Ping(self._number))
