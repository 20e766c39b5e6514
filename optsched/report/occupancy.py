"""How many tokens each replica's cache holds over time, as the log tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from optsched.domain.log import ExecutionLog
from optsched.domain.workload import Workload
from optsched.report.spans import turn_at

Array = np.ndarray
_GONE = frozenset({"preempted", "evicted", "dropped"})
_Knots = list[tuple[float, int]]
KNOTS = 8
"""Tokens per turn whose times are looked at; between them caches are taken to grow evenly."""
_ORDER = {"drop": 0, "copy": 1, "only": 2, "grow": 3}


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Cached tokens on one replica, linear between consecutive times.

    Attributes
    ----------
    time_s
        Ascending times t_0 ... t_n at which anything changes.
    after, before
        Tokens just after t_i and just before t_(i+1).
    """

    time_s: Float64[Array, " n+1"]
    after: Float64[Array, " n"]
    before: Float64[Array, " n"]

    @property
    def peak(self) -> float:
        """Most tokens at any time."""
        return float(max(self.after.max(initial=0.0), self.before.max(initial=0.0)))

    def at(self, time_s: float) -> float:
        """Return the tokens just after a time."""
        index = int(np.searchsorted(self.time_s, time_s, side="right")) - 1
        return float(self._values(np.array([index]), np.array([time_s]))[0]) if 0 <= index < len(self.after) else 0.0

    def columns(self, edges_s: Float64[Array, " k+1"]) -> Float64[Array, " k"]:
        """Return the most tokens within each column of time, so that no peak is lost."""
        most = np.zeros(len(edges_s) - 1)
        if len(self.after):
            inside = edges_s[(edges_s > self.time_s[0]) & (edges_s < self.time_s[-1])]
            times = np.union1d(self.time_s, inside)
            index = np.searchsorted(self.time_s, times[:-1], side="right") - 1
            column = np.clip(np.searchsorted(edges_s, times[:-1], side="right") - 1, 0, len(most) - 1)
            np.maximum.at(most, column, np.maximum(self._values(index, times[:-1]), self._values(index, times[1:])))
        return most

    def _values(self, index: Array, time_s: Float64[Array, " m"]) -> Float64[Array, " m"]:
        start_s, end_s = self.time_s[index], self.time_s[index + 1]
        values = self.after[index] + (time_s - start_s) / (end_s - start_s) * (self.before[index] - self.after[index])
        return np.asarray(values)


def occupancy(log: ExecutionLog, workload: Workload, replicas: int) -> list[Occupancy]:
    """Return the occupancy of every replica's cache.

    A turn's cache grows from its first computation to its first token by its prompt, and from there to its last token by its
    output; it stays until the conversation's next turn, or moves. A transfer takes its room where it arrives when it begins,
    and frees it where it left when it ends, unless the turn only visits there. What was preempted, evicted or dropped is gone
    until it is computed again. Between a turn's first computation and its first token, and between some of its tokens, growth is
    taken to be even, so that sums are right to a percent or so.

    Parameters
    ----------
    log, workload
        What happened to what. Prompts that share blocks are counted each for itself.
    replicas
        Number of replicas.
    """
    moves, lost = _by_conversation(log)
    before, offset = workload.context_before, np.concatenate([[0], np.cumsum(workload.output_tokens)])
    segments: list[list[tuple[float, float, float, float]]] = [[] for _ in range(replicas)]
    for conversation, turns in enumerate(workload):
        changes: list[_Change] = []
        arrived_s: dict[int, float] = {}
        knots: dict[int, _Knots] = {}
        for index in moves.get(conversation, ()):
            start_s, end_s = float(log.transfers.start_s[index]), float(log.transfers.end_s[index])
            source, target = int(log.transfers.source[index]), int(log.transfers.target[index])
            changes.append(_Change(start_s, "copy", target, start_s, source))
            turn = turn_at(log, workload, conversation, start_s)
            if target == log.decode_replica[turn]:
                changes.append(_Change(end_s, "only", target, end_s, 0))
                arrived_s[turn] = end_s
        for turn in turns:
            prompt = int(before[turn] + workload.new_tokens[turn])
            knots[turn] = _knots(log, turn, prompt, slice(int(offset[turn]), int(offset[turn + 1])), arrived_s.get(turn, 0.0))
            changes += _turn(log, turn, prompt, knots[turn])
        for time_s, replica in lost.get(conversation, ()):
            turn = turn_at(log, workload, conversation, time_s)
            prompt = int(before[turn] + workload.new_tokens[turn])
            own = slice(int(offset[turn]), int(offset[turn + 1]))
            changes += _loss(log, time_s, replica, turn, prompt, own, knots[turn])
        end_s = float(log.end_s[turns[-1]])
        changes.append(_Change(end_s if np.isfinite(end_s) else log.makespan_s, "only", -1, 0.0, 0))
        _Holdings(segments).follow(changes)
    return [_sum(of_replica) for of_replica in segments]


def _by_conversation(log: ExecutionLog) -> tuple[dict[int, list[int]], dict[int, list[tuple[float, int]]]]:
    moves: dict[int, list[int]] = {}
    for index in np.flatnonzero(np.isfinite(log.transfers.start_s) & np.isfinite(log.transfers.end_s)).tolist():
        moves.setdefault(int(log.transfers.conversation[index]), []).append(index)
    lost: dict[int, list[tuple[float, int]]] = {}
    for event in log.events:
        if event.kind in _GONE:
            lost.setdefault(event.conversation, []).append((event.time_s, event.replica))
    return moves, lost


class _Change(NamedTuple):
    """What becomes of a conversation's cache on a replica at a time.

    It is dropped; is a copy of what replica `number` holds; is from now on all that is held; or grows until `until_s` to
    `number` tokens.
    """

    time_s: float
    kind: Literal["drop", "copy", "only", "grow"]
    replica: int
    until_s: float
    number: int


def _turn(log: ExecutionLog, turn: int, prompt: int, knots: _Knots) -> Iterator[_Change]:
    start_s, first_s = float(log.start_s[turn]), float(log.first_token_s[turn])
    if np.isfinite(first_s):
        yield _Change(start_s, "grow", int(log.prefill_replica[turn]), first_s, prompt)
    for (begin_s, _), (until_s, number) in pairwise(knots):
        yield _Change(begin_s, "grow", int(log.decode_replica[turn]), until_s, number)


def _knots(log: ExecutionLog, turn: int, prompt: int, tokens: slice, arrived_s: float) -> _Knots:
    """Return when a turn that decodes holds how much: at its beginning, at some of its tokens, and at the last."""
    outputs, first_s, end_s = tokens.stop - tokens.start, float(log.first_token_s[turn]), float(log.end_s[turn])
    if outputs < 2 or not np.isfinite(end_s):
        return []
    # The last token of a turn is computed with the next one's prompt.
    numbers = [outputs - 1]
    if log.token_s is not None:
        numbers = np.unique(np.linspace(1, outputs - 1, KNOTS).astype(int)).tolist()
    times = [end_s] if log.token_s is None else log.token_s[tokens][numbers].tolist()
    inner = zip(times, (prompt + number for number in numbers), strict=True)
    return [(max(first_s, arrived_s), prompt), *inner]


def _loss(
    log: ExecutionLog, time_s: float, replica: int, turn: int, prompt: int, tokens: slice, knots: _Knots
) -> Iterator[_Change]:
    """Yield what follows the loss of a cache: it is there again, at the latest, with the turn's next token."""
    yield _Change(time_s, "drop", replica, time_s, 0)
    first_s, end_s = float(log.first_token_s[turn]), float(log.end_s[turn])
    if time_s < first_s:
        yield _Change(max(time_s, float(log.start_s[turn])), "grow", replica, first_s, prompt)
    elif time_s < end_s:
        emitted, resumed_s = 0, time_s
        if log.token_s is not None:
            emitted = int(np.searchsorted(log.token_s[tokens], time_s, side="right"))
            resumed_s = float(log.token_s[tokens][emitted])
        yield _Change(resumed_s, "grow", replica, resumed_s, prompt + emitted)
        until_s, number = next((knot for knot in knots if knot[0] > resumed_s), (resumed_s, prompt + emitted))
        yield _Change(resumed_s, "grow", replica, until_s, number)


@dataclass(slots=True)
class _Holdings:
    """What one conversation holds on each replica: a ramp from one time and number of tokens to another, and level after it."""

    segments: list[list[tuple[float, float, float, float]]]
    held: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)

    def follow(self, changes: list[_Change]) -> None:
        """Go through changes in order of time."""
        for change in sorted(changes, key=lambda change: (change.time_s, _ORDER[change.kind])):
            now = change.time_s
            if change.kind == "grow":
                held = self._until(change.replica, now)
                until_s = max(now, change.until_s)
                self.held[change.replica] = (now, until_s, held, float(change.number))
            elif change.kind == "copy":
                self._until(change.replica, now)
                number = self._until(change.number, now)
                self.held[change.number] = (now, now, number, number)
                self.held[change.replica] = (now, now, number, number)
            elif change.kind == "drop":
                self._until(change.replica, now)
                self.held.pop(change.replica, None)
            else:
                for replica in [replica for replica in self.held if replica != change.replica]:
                    self._until(replica, now)
                    del self.held[replica]

    def _until(self, replica: int, now: float) -> float:
        """Write down what a replica held until now, and return what it holds."""
        if replica not in self.held:
            return 0.0
        start, end, low, high = self.held[replica]
        if now < end:
            high = low + (now - start) / (end - start) * (high - low)
        ramp_end = min(now, end)
        if ramp_end > start:
            self.segments[replica].append((start, ramp_end, low, high))
        if now > ramp_end:
            self.segments[replica].append((ramp_end, now, high, high))
        return high


def _sum(segments: list[tuple[float, float, float, float]]) -> Occupancy:
    if not segments:
        return Occupancy(np.zeros(1), np.zeros(0), np.zeros(0))
    start, end, low, high = np.array(segments).T
    time_s, index = np.unique(np.concatenate([start, end]), return_inverse=True)
    first, last = index[: len(start)], index[len(start) :]
    jump, bend = np.zeros((2, len(time_s)))
    slope = (high - low) / (end - start)
    for target, opening, closing in ((jump, low, -high), (bend, slope, -slope)):
        np.add.at(target, first, opening)
        np.add.at(target, last, closing)
    rise = np.cumsum(bend)[:-1] * np.diff(time_s)
    before = np.cumsum(jump)[:-1] + np.cumsum(rise)
    return Occupancy(time_s, before - rise, before)
