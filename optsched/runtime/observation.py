"""Put the workers' reports together to the log of an execution."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from optsched.domain.journal import Entry
from optsched.domain.log import Event, ExecutionLog, Steps, Transfers
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.runtime.messages import Incident, Prefilled, Received, Report, Sent

Array = np.ndarray


class Observation:
    """What is known of an execution so far; fields that the workers report are filled by `add`, the others by the controller.

    Parameters
    ----------
    plan, workload
        What is executed.
    """

    def __init__(self, plan: Plan, workload: Workload) -> None:
        turns, conversations = workload.num_turns, workload.num_conversations
        self._plan, self._workload = plan, workload
        self._offset = np.concatenate([[0], np.cumsum(workload.output_tokens)]).astype(np.int64)
        self.arrival_s = np.full(turns, np.nan)
        self.start_s, self.token_s = np.full(turns, np.nan), np.full(int(self._offset[-1]), np.nan)
        self.token_id = np.full(int(self._offset[-1]), -1, np.int64)
        self.prefill_replica, self.decode_replica = np.full(turns, -1, np.int64), np.full(turns, -1, np.int64)
        self.granted_s, self.prefilled_s = np.full(conversations, np.nan), np.full(conversations, np.nan)
        self.admission_s = np.zeros(turns)
        self.events: list[Event] = []
        self.journals: list[list[Entry]] = [[] for _ in plan.replicas]
        self._steps: list[Steps] = []
        self._leaving: dict[int, float] = {}
        self._moves: list[tuple[float, ...]] = []

    def add(self, replica: int, report: Report) -> None:
        """Take in one worker's report."""
        self._steps.append(report.steps)
        self.journals[replica] += report.journal
        self.start_s[report.started_turn] = report.started_s
        for column in (self.prefill_replica, self.decode_replica):
            column[report.started_turn] = replica
        position = self._offset[report.token_turn] + report.token_number
        self.token_s[position], self.token_id[position] = report.token_s, report.token_id
        for news in report.news:
            if isinstance(news, Prefilled):
                self.prefilled_s[news.conversation] = news.time_s
            elif isinstance(news, Incident):
                self.events.append(Event(news.time_s, news.kind, news.conversation, replica))
            elif isinstance(news, Received):
                first = int(self._workload.first_turn[news.conversation])
                self.decode_replica[first] = replica
                start_s = self._leaving.pop(news.conversation, np.nan)
                self._moves.append((news.conversation, news.source, replica, start_s, news.end_s, news.num_bytes))
            elif isinstance(news, Sent):
                self._note_departure(news, replica)

    def _note_departure(self, news: Sent, source: int) -> None:
        """Fill in when a move began: the two ends of a hand-over report in either order."""
        for position, move in enumerate(self._moves):
            if move[0] == news.conversation and move[1] == source and np.isnan(move[3]):
                self._moves[position] = (*move[:3], news.start_s, *move[4:])
                return
        self._leaving[news.conversation] = news.start_s

    @property
    def unconfirmed(self) -> bool:
        """Whether a cache has arrived whose sender has not said yet when it left."""
        return any(np.isnan(move[3]) for move in self._moves)

    def log(self, seed: int, device: str) -> ExecutionLog:
        """Return the log; what has not happened (yet) is NaN."""
        workload, first = self._workload, self._workload.first_turn[:-1]
        starts, ends = self._offset[:-1], self._offset[1:] - 1
        queue_s = np.zeros(workload.num_turns)
        prefill_only = np.array([replica.role == "prefill" for replica in self._plan.replicas])[self.prefill_replica[first]]
        queue_s[first] = np.where(prefill_only, self.start_s[first], self.granted_s) - self.arrival_s[first]
        moves = np.array(sorted(self._moves, key=lambda move: move[4]), dtype=float).reshape(-1, 6)
        return ExecutionLog(
            origin="observed",
            arrival_s=self.arrival_s, start_s=self.start_s,
            first_token_s=self.token_s[starts], end_s=self.token_s[ends],
            prefill_replica=self.prefill_replica, decode_replica=self.decode_replica,
            queue_s=queue_s, admission_s=self.admission_s, token_s=self.token_s,
            steps=merge_steps(self._steps),
            transfers=Transfers(*(moves[:, i].astype(np.int64) for i in range(3)), *(moves[:, i] for i in range(3, 6))),
            dynamic_j=None,
            events=tuple(sorted(self.events, key=lambda event: event.time_s)),
            preemptions=sum(event.kind == "preempted" for event in self.events),
            seed=seed,
            metadata={"device": device, "torch": metadata.version("torch")},
        )  # fmt: skip


def merge_steps(parts: list[Steps]) -> Steps:
    """Join the steps of several reports in order of their ends."""
    names = Steps.__dataclass_fields__
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0) for name in names}
    order = np.argsort(joined["end_s"], kind="stable")
    return Steps(**{name: column[order] for name, column in joined.items()})
