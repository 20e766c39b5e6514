"""One record of an execution, whether simulated or observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.gaps import Gaps
from optsched.domain.workload import Workload

Array = np.ndarray
EventKind = Literal[
    "preempted", "evicted", "dropped", "worker_died", "link_lost", "recovered", "switched_cache", "interrupted"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Steps:
    """Every step that a replica executed, in order of its end.

    Attributes
    ----------
    replica
        Index of the replica in the plan.
    start_s, end_s
        When the step ran.
    prefill_tokens, pairs, prefill_context_tokens
        Tokens computed for sequences in prefill, and over them ``sum n_i (c_i + n_i/2)`` and ``sum c_i``.
    sequences, decode_sequences
        Sequences in the step, and those of them that decode.
    kv_tokens, hidden_tokens
        Cached tokens that the decoding sequences read as KV, and rebuild from hidden cache.
    busy_replicas
        Replicas of the same host that were in a step when this one started, itself included.
    """

    replica: Int64[Array, " S"]
    start_s: Float64[Array, " S"]
    end_s: Float64[Array, " S"]
    prefill_tokens: Int64[Array, " S"]
    pairs: Float64[Array, " S"]
    prefill_context_tokens: Int64[Array, " S"]
    sequences: Int64[Array, " S"]
    decode_sequences: Int64[Array, " S"]
    kv_tokens: Int64[Array, " S"]
    hidden_tokens: Int64[Array, " S"]
    busy_replicas: Int64[Array, " S"]

    def busy_at(self, times_s: Float64[Array, " n"], among: Sequence[int]) -> Int64[Array, " n"]:
        """Return how many of some replicas are in a step at given times; one that starts then is, one that ends then is not."""
        mine = np.isin(self.replica, among)
        started, ended = (np.sort(column[mine]) for column in (self.start_s, self.end_s))
        return np.searchsorted(started, times_s, side="right") - np.searchsorted(ended, times_s, side="right")


@dataclass(frozen=True, slots=True)
class Transfers:
    """Every cache that moved from one replica to another.

    Attributes
    ----------
    conversation, source, target
        Indices of the conversation in the workload and of the replicas in the plan.
    start_s, end_s, bytes
        When it moved, and how much.
    """

    conversation: Int64[Array, " X"]
    source: Int64[Array, " X"]
    target: Int64[Array, " X"]
    start_s: Float64[Array, " X"]
    end_s: Float64[Array, " X"]
    bytes: Float64[Array, " X"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something out of the ordinary: when, what, to which conversation, on which replica."""

    time_s: float
    kind: EventKind
    conversation: int
    replica: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ExecutionLog:
    """What happened to every turn, in the order of the workload's turns. Times are seconds from the start of the workload.

    Attributes
    ----------
    origin
        ``simulated`` or ``observed``.
    arrival_s
        When each turn arrived: the conversation's arrival, or the end of the turn before plus its gap.
    start_s
        When its first token was first computed on.
    first_token_s, end_s
        When its first and its last output token appeared; NaN if never.
    prefill_replica, decode_replica
        Indices of the replicas in the plan that prefilled and decoded it; -1 if never.
    queue_s
        Of the time before its first token, what the ``paper`` clock leaves out: waiting to be placed, and for a
        replica of role prefill.
    admission_s
        Time between the first token and the grant of a decoder, which the ``paper`` clock leaves out too.
    token_s
        Times of all output tokens, turn after turn; None where only `gaps` were kept.
    steps, transfers, events
        What the replicas did.
    dynamic_j
        Energy above idle per replica; None where nothing metered it.
    seed
        Seed of whatever was random.
    reused_tokens
        Prompt tokens that were not computed since another prompt's cache held them.
    gaps
        What was kept of the gaps between tokens, where `token_s` was not.
    """

    origin: Literal["simulated", "observed"]
    arrival_s: Float64[Array, " T"]
    start_s: Float64[Array, " T"]
    first_token_s: Float64[Array, " T"]
    end_s: Float64[Array, " T"]
    prefill_replica: Int64[Array, " T"]
    decode_replica: Int64[Array, " T"]
    queue_s: Float64[Array, " T"]
    admission_s: Float64[Array, " T"]
    token_s: Float64[Array, " N"] | None
    steps: Steps
    transfers: Transfers
    dynamic_j: Float64[Array, " R"] | None
    events: tuple[Event, ...] = ()
    preemptions: int = 0
    seed: int = 0
    gaps: Gaps | None = None
    reused_tokens: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def makespan_s(self) -> float:
        """Time from the start of the workload to the last token."""
        return float(np.nanmax(self.end_s)) if len(self.end_s) and np.isfinite(self.end_s).any() else 0.0

    @property
    def iterations(self) -> int:
        """Number of steps executed."""
        return len(self.steps.replica)

    def violations(self, workload: Workload, tolerance_s: float = 1e-9) -> list[str]:
        """List every conservation law that the record breaks: requests, tokens, order of times, one step at a time.

        Parameters
        ----------
        workload
            What was to be executed.
        tolerance_s
            Slack on comparisons of times.
        """
        broken: list[str] = []
        turns, outputs = workload.num_turns, workload.output_tokens
        if len(self.end_s) != turns:
            return [f"the log has {len(self.end_s)} turns, the workload {turns}"]
        if self.token_s is not None and len(self.token_s) != int(outputs.sum()):
            return [f"the log has {len(self.token_s)} output tokens, the workload {int(outputs.sum())}"]
        for turn in range(turns):
            times = (self.arrival_s[turn], self.start_s[turn], self.first_token_s[turn], self.end_s[turn])
            if not all(np.isfinite(times)):
                broken.append(f"turn {turn} was not finished")
            elif any(later < earlier - tolerance_s for earlier, later in pairwise(times)):
                broken.append(f"turn {turn} has times out of order: arrival, start, first token, end = {times}")
        for conversation, indices in enumerate(workload):
            ready = float(workload.arrival_s[conversation])
            for turn in indices:
                if self.arrival_s[turn] < ready + (workload.gap_s[turn] if turn != indices[0] else 0.0) - tolerance_s:
                    broken.append(f"turn {turn} arrived before the turn before it ended and its gap passed")
                ready = float(self.end_s[turn])
        return broken + self._token_violations(outputs, tolerance_s) + self._step_violations(workload, tolerance_s)

    def _token_violations(self, outputs: Int64[Array, " T"], tolerance_s: float) -> list[str]:
        if self.token_s is None:
            return []
        broken: list[str] = []
        position = 0
        for turn, count in enumerate(outputs):
            own = self.token_s[position : position + int(count)]
            position += int(count)
            if np.any(np.diff(own) < -tolerance_s):
                broken.append(f"turn {turn} has tokens out of order")
            if abs(own[0] - self.first_token_s[turn]) > tolerance_s or abs(own[-1] - self.end_s[turn]) > tolerance_s:
                broken.append(f"turn {turn}: first or last token time contradicts its tokens")
        return broken

    def _step_violations(self, workload: Workload, tolerance_s: float) -> list[str]:
        broken: list[str] = []
        for replica in np.unique(self.steps.replica):
            mine = self.steps.replica == replica
            order = np.argsort(self.steps.start_s[mine], kind="stable")
            start, end = self.steps.start_s[mine][order], self.steps.end_s[mine][order]
            if np.any(end < start - tolerance_s) or np.any(start[1:] < end[:-1] - tolerance_s):
                broken.append(f"replica {replica} executes two steps at once")
        if len(self.steps.replica):
            carried = workload.num_turns - workload.num_conversations
            due = int(workload.new_tokens.sum()) + carried - self.reused_tokens
            done = int(self.steps.prefill_tokens.sum())
            if done < due or (done != due and not self.events):
                broken.append(f"{done} tokens were prefilled, {due} were due")
            # A cache that was dropped is computed again; the end of that prefill yields a token without a decode.
            dropped = len(self.events)
            decodes, due = int(self.steps.decode_sequences.sum()), int((workload.output_tokens - 1).sum())
            if decodes < due - dropped or decodes > due:
                broken.append(f"{decodes} tokens were decoded, {due} were due")
        return broken
