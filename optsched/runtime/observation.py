"""Put the workers' reports together to the log of an execution."""

from __future__ import annotations

from importlib import metadata

import numpy as np
from jaxtyping import Int64

from optsched.domain.journal import Entry
from optsched.domain.log import Event, ExecutionLog, Steps, Transfers
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import WorkerError
from optsched.runtime.messages import Incident, Received, Report, Sent, TurnEnded

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
        self.granted_s = np.full(conversations, np.nan)
        self.emitted, self.output_tokens = np.zeros(turns, np.int64), workload.output_tokens.copy()
        self.admission_s = np.zeros(turns)
        self.events: list[Event] = []
        self.journals: list[list[Entry]] = [[] for _ in plan.replicas]
        self._steps: list[Steps] = []
        self._left_s: dict[int, float] = {}
        self._moves: dict[int, tuple[float, ...]] = {}

    def add(self, replica: int, report: Report) -> None:
        """Take in one worker's report."""
        self._steps.append(report.steps)
        self.journals[replica] += report.journal
        self._note_starts(report, replica)
        position = self._offset[report.token_turn] + report.token_number
        if np.any(self.token_id[position] >= 0):
            raise WorkerError(f"worker {replica} told tokens that were known already (a bug, please report it)")
        self.token_s[position], self.token_id[position] = report.token_s, report.token_id
        np.add.at(self.emitted, report.token_turn, 1)
        for news in report.news:
            if isinstance(news, Incident):
                self.events.append(Event(news.time_s, news.kind, news.conversation, replica))
            elif isinstance(news, Received):
                self.decode_replica[news.turn] = replica
                self._moves[news.transfer] = (news.conversation, news.source, replica, news.end_s, news.num_bytes)
            elif isinstance(news, TurnEnded):
                self.output_tokens[news.turn] = self.emitted[news.turn]  # fewer than planned where a stop token came
            elif isinstance(news, Sent):
                self._left_s[news.transfer] = news.start_s

    def _note_starts(self, report: Report, replica: int) -> None:
        """Keep the first start of each turn: what a lost worker had computed is started again elsewhere."""
        turns = report.started_turn
        fresh = np.isnan(self.start_s[turns])
        self.start_s[turns[fresh]] = report.started_s[fresh]
        for column in (self.prefill_replica, self.decode_replica):
            column[turns] = replica

    def outputs(self, turn: int) -> Int64[Array, " n"]:
        """Return the output tokens of a turn that are known so far."""
        start = int(self._offset[turn])
        return self.token_id[start : start + int(self.emitted[turn])]

    def last_token_s(self, turn: int) -> float:
        """Return when the last of them appeared; when the turn arrived if there is none."""
        emitted = int(self.emitted[turn])
        return float(self.token_s[self._offset[turn] + emitted - 1] if emitted else self.arrival_s[turn])

    @property
    def unconfirmed(self) -> bool:
        """Whether a cache has arrived whose sender has not said yet when it left."""
        return not self._moves.keys() <= self._left_s.keys()

    def log(self, seed: int, device: str) -> ExecutionLog:
        """Return the log; what has not happened (yet) is NaN."""
        workload, first = self._workload, self._workload.first_turn[:-1]
        starts = self._offset[:-1]
        ends = starts + self.output_tokens - 1
        numbers = np.arange(len(self.token_s)) - np.repeat(starts, workload.output_tokens)
        put_out = numbers < np.repeat(self.output_tokens, workload.output_tokens)
        queue_s = np.zeros(workload.num_turns)
        prefill_only = np.array([replica.role == "prefill" for replica in self._plan.replicas])[self.prefill_replica[first]]
        queue_s[first] = np.where(prefill_only, self.start_s[first], self.granted_s) - self.arrival_s[first]
        told = [(*move[:3], self._left_s.get(transfer, np.nan), *move[3:]) for transfer, move in self._moves.items()]
        moves = np.array(sorted(told, key=lambda move: move[4]), dtype=float).reshape(-1, 6)
        return ExecutionLog(
            origin="observed",
            arrival_s=self.arrival_s, start_s=self.start_s,
            first_token_s=self.token_s[starts], end_s=self.token_s[ends],
            prefill_replica=self.prefill_replica, decode_replica=self.decode_replica,
            queue_s=queue_s, admission_s=self.admission_s, token_s=self.token_s[put_out],
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
