"""What replicas did for conversations, as spans of time: turns' prefill and decode, and transfers between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from optsched.domain.log import ExecutionLog
from optsched.domain.workload import Workload

Kind = Literal["prefill", "transfer", "decode"]
KINDS: tuple[Kind, ...] = ("prefill", "transfer", "decode")


class Span(NamedTuple):
    """Something that a conversation's turn went through on a replica; a transfer counts where it arrives.

    Attributes
    ----------
    kind, replica, conversation, number
        What, on which replica of the plan, and the turn's number in its conversation.
    start_s, end_s
        From the turn's first computation to its first token (prefill), from there or from the arrival of its cache to its
        last token (decode), from the first byte to the last (transfer).
    """

    kind: Kind
    replica: int
    conversation: int
    number: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Stay:
    """Consecutive spans of one conversation on one replica, which holds its cache from the first to the last."""

    replica: int
    start_s: float
    end_s: float
    spans: tuple[Span, ...]


def turn_at(log: ExecutionLog, workload: Workload, conversation: int, time_s: float) -> int:
    """Return the index of a conversation's latest turn that has arrived at a time; its first, if none has."""
    first, after = int(workload.first_turn[conversation]), int(workload.first_turn[conversation + 1])
    return max(first, first + int(np.searchsorted(log.arrival_s[first:after], time_s, side="right")) - 1)


def stays(log: ExecutionLog, workload: Workload) -> list[Stay]:
    """Return all stays of conversations on replicas, in order of their starts.

    What never happened (NaN in a log that was cut short) is left out.
    """
    moves = _transfers(log, workload)
    found: list[Stay] = []
    for conversation, turns in enumerate(workload):
        spans: list[Span] = []
        for number, turn in enumerate(turns):
            spans += _turn(log, conversation, number, turn, moves.get(turn, ()))
        for replica, group in groupby(spans, key=lambda span: span.replica):
            own = tuple(group)
            found.append(Stay(replica, own[0].start_s, max(span.end_s for span in own), own))
    return sorted(found, key=lambda stay: (stay.start_s, stay.end_s))


def _transfers(log: ExecutionLog, workload: Workload) -> dict[int, list[Span]]:
    """Return the transfers of each turn, in order."""
    moves, found = log.transfers, dict[int, list[Span]]()
    for index in np.argsort(moves.start_s, kind="stable").tolist():
        conversation, start_s, end_s = int(moves.conversation[index]), float(moves.start_s[index]), float(moves.end_s[index])
        if np.isfinite(start_s) and np.isfinite(end_s):
            turn = turn_at(log, workload, conversation, start_s)
            number = turn - int(workload.first_turn[conversation])
            span = Span("transfer", int(moves.target[index]), conversation, number, start_s, end_s)
            found.setdefault(turn, []).append(span)
    return found


def _turn(log: ExecutionLog, conversation: int, number: int, turn: int, moves: Sequence[Span]) -> list[Span]:
    start_s, first_s, end_s = float(log.start_s[turn]), float(log.first_token_s[turn]), float(log.end_s[turn])
    spans = list(moves)
    if np.isfinite(first_s):
        spans.append(Span("prefill", int(log.prefill_replica[turn]), conversation, number, start_s, first_s))
    decoder = int(log.decode_replica[turn])
    arrived_s = max([first_s, *(move.end_s for move in moves if move.replica == decoder and move.start_s >= first_s)])
    if np.isfinite(end_s) and end_s > arrived_s:
        spans.append(Span("decode", decoder, conversation, number, arrived_s, end_s))
    return sorted(spans, key=lambda span: (span.start_s, span.end_s))
