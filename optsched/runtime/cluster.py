"""Execute a plan: the controller that runs arrivals on the real clock and asks the placement policy."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import WorkerError
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.placement.policies import make_policy
from optsched.placement.view import ConversationView
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import (
    Died,
    Failed,
    News,
    Prefilled,
    Receive,
    Report,
    Send,
    StartTurn,
    Stay,
    TurnEnded,
)  # fmt: skip
from optsched.runtime.observation import Observation
from optsched.runtime.setups import worker_setups

Progress = Callable[[int, int], None]
_ARRIVAL, _TURN = 0, 1
_SILENCE_S = 120.0


class WorkerLostError(WorkerError):
    """A worker failed or died, or the workload came to no end.

    Attributes
    ----------
    log
        What had happened until then; NaN where nothing had.
    """

    def __init__(self, reason: str, log: ExecutionLog) -> None:
        super().__init__(reason)
        self.log = log


def execute(
    plan: Plan,
    workload: Workload,
    *,
    seed: int = 0,
    device: str = "cpu",
    time_limit_s: float = 3600.0,
    progress: Progress | None = None,
) -> ExecutionLog:
    """Execute a workload on a plan's replicas, on real workers of this machine in real time.

    Parameters
    ----------
    plan
        Replicas, batching and placement policies.
    workload
        The conversations.
    seed
        Seed of the prompts, and of the weights where the plan names none.
    device
        ``cpu`` (one thread per replica) or ``cuda``.
    time_limit_s
        How long the workload may take, from its start.
    progress
        Called now and then with how many turns have ended, of how many.

    Returns
    -------
    ExecutionLog
        Of origin ``observed``; energy is not metered.

    Raises
    ------
    PlanError
        If the plan contradicts itself.
    SpecError
        If the runtime cannot do what the plan says.
    InfeasibleError
        If a conversation fits no replica.
    WorkerError
        If a worker fails, or the time limit passes; as `WorkerLostError` with the log so far once the workload has started.
    """
    setups = worker_setups(plan, workload, seed, device)
    with Fleet(setups) as fleet:
        return _Run(plan, workload, fleet, seed, device).to_the_end(time_limit_s, progress)


class _Run:
    """One execution: timed events, the dispatcher's books, and where every conversation is."""

    def __init__(self, plan: Plan, workload: Workload, fleet: Fleet, seed: int, device: str) -> None:
        self.plan, self.workload, self.fleet, self.seed, self.device = plan, workload, fleet, seed, device
        index = {replica.id: position for position, replica in enumerate(plan.replicas)}
        assignments = {a.conversation: (index[a.prefill], index[a.decode]) for a in plan.placement.assignments}
        policy = make_policy(plan.placement.policy, plan.placement.parameters, assignments)
        self.dispatcher = Dispatcher(
            policy, plan.replicas, plan.engine.block_tokens, plan.engine.max_batched_tokens, plan.links,
            plan.llms[0].shape.kv_bytes_per_token,
        )  # fmt: skip
        self.observed = Observation(plan, workload)
        scheduled = workload.arrival_s[: workload.concurrency]
        self.due = [(float(time_s), _ARRIVAL, conversation) for conversation, time_s in enumerate(scheduled)]
        self.prefiller: dict[int, int] = {}
        self.decoder: dict[int, int] = {}
        self.held_back: dict[int, Prefilled] = {}
        self.overdue: dict[int, int] = {}
        self.ended_turns = 0
        self.ended = 0
        self.zero_s = 0.0

    def now(self) -> float:
        """Return the time since the start of the workload."""
        return time.monotonic() - self.zero_s

    def to_the_end(self, time_limit_s: float, progress: Progress | None) -> ExecutionLog:
        """Alternate between timed events and the workers' reports until every conversation ended."""
        self.zero_s = self.fleet.begin()
        heard_s = 0.0
        while self.ended < self.workload.num_conversations:
            now = self.now()
            if now > time_limit_s or (not self.due and now - heard_s > _SILENCE_S):
                self._give_up(now, time_limit_s)
            while self.due and self.due[0][0] <= now:
                due_s, kind, subject = heapq.heappop(self.due)
                self._arrive(subject, due_s) if kind == _ARRIVAL else self._turn_due(subject)
            next_s = self.due[0][0] if self.due else now + 1.0
            for replica, message in self.fleet.receive(min(next_s, now + 1.0) - self.now()):
                heard_s = self.now()
                if isinstance(message, Report):
                    self._hear(replica, message)
                elif isinstance(message, (Failed, Died)):
                    raise WorkerLostError(self._loss(replica, message), self.observed.log(self.seed, self.device))
            if progress is not None:
                progress(self.ended_turns, self.workload.num_turns)
        self._drain()
        return self.observed.log(self.seed, self.device)

    def _drain(self) -> None:
        """Wait for reports that no conversation depends on: hand-overs that the source confirms last."""
        deadline = self.now() + 5.0
        while self.observed.unconfirmed and self.now() < deadline:
            for replica, message in self.fleet.receive(0.1):
                if isinstance(message, Report):
                    self.observed.add(replica, message)

    def _hear(self, replica: int, report: Report) -> None:
        self.observed.add(replica, report)
        for news in report.news:
            self._act(news)

    def _act(self, news: News) -> None:
        if isinstance(news, Prefilled):
            if not news.over and self.dispatcher.decoder_of(news.conversation) != self.prefiller[news.conversation]:
                self.held_back[news.conversation] = news
            self._apply(self.dispatcher.prefilled(self.now(), news.conversation))
        elif isinstance(news, TurnEnded):
            self.ended_turns += 1
            if news.turn + 1 < self.workload.first_turn[news.conversation + 1]:
                ready_s = news.time_s + float(self.workload.gap_s[news.turn + 1])
                self.observed.arrival_s[news.turn + 1] = ready_s
                heapq.heappush(self.due, (ready_s, _TURN, news.turn + 1))
            else:
                self.ended += 1
                following = self.ended - 1 + (self.workload.concurrency or self.workload.num_conversations)
                if following < self.workload.num_conversations:
                    heapq.heappush(self.due, (news.time_s, _ARRIVAL, following))
                self._apply(self.dispatcher.finished(self.now(), news.conversation))

    def _arrive(self, conversation: int, arrival_s: float) -> None:
        w = self.workload
        self.observed.arrival_s[w.first_turn[conversation]] = arrival_s
        first_turn, peak = int(w.first_turn_tokens[conversation]), int(w.peak_tokens[conversation])
        view = ConversationView(conversation, arrival_s, first_turn, peak)
        self._apply(self.dispatcher.arrive(self.now(), view))

    def _turn_due(self, turn: int) -> None:
        conversation = int(self.workload.conversation_of_turn[turn])
        if conversation in self.held_back:
            self.overdue[conversation] = turn
            return
        self.dispatcher.grow(conversation, int(self.workload.context_before[turn] + self.workload.new_tokens[turn]))
        self.fleet.send(self.decoder[conversation], self._turn(turn, stays=True))

    def _turn(self, turn: int, stays: bool) -> StartTurn:
        w = self.workload
        conversation, number = int(w.conversation_of_turn[turn]), int(w.turn_in_conversation[turn])
        return StartTurn(
            conversation, turn, number, float(self.observed.arrival_s[turn]), int(w.new_tokens[turn]), int(w.output_tokens[turn]),
            last=turn + 1 == w.first_turn[conversation + 1], stays=stays,
        )  # fmt: skip

    def _apply(self, grants: list[Grant]) -> None:
        for grant in grants:
            conversation, turn = grant.conversation, int(self.workload.first_turn[grant.conversation])
            if grant.kind == "prefill":
                self.observed.granted_s[conversation] = self.now()
                self.prefiller[conversation] = grant.replica
                stays = self.dispatcher.decoder_of(conversation) == grant.replica
                if stays:
                    self.decoder[conversation] = grant.replica
                self.fleet.send(grant.replica, self._turn(turn, stays))
            elif conversation in self.held_back:
                self._move(self.held_back.pop(conversation), grant.replica, turn)

    def _move(self, prefilled: Prefilled, target: int, turn: int) -> None:
        """Let a prefilled conversation decode on its decoder, handing its cache over if that is another replica."""
        conversation = prefilled.conversation
        source = self.prefiller[conversation]
        self.observed.admission_s[turn] = self.now() - prefilled.time_s
        self.decoder[conversation] = target
        if source == target:
            self.fleet.send(source, Stay(conversation))
        else:
            first = self._turn(turn, stays=True)
            self.fleet.send(target, Receive(first, source, prefilled.cache, prefilled.context, prefilled.token, prefilled.time_s))
            self.fleet.send(source, Send(conversation, target))
        if conversation in self.overdue:
            self._turn_due(self.overdue.pop(conversation))

    def _loss(self, replica: int, message: Failed | Died) -> str:
        left, count = self.workload.num_conversations - self.ended, self.workload.num_conversations
        return f"{self.fleet.describe(replica, message)}; {left} of {count} conversations were not finished"

    def _give_up(self, now: float, time_limit_s: float) -> None:
        left = self.workload.num_conversations - self.ended
        log = self.observed.log(self.seed, self.device)
        if now > time_limit_s:
            reason = f"{left} of {self.workload.num_conversations} conversations were not finished after {time_limit_s:g} s"
            raise WorkerLostError(f"{reason}; raise the time limit, or run fewer conversations", log)
        raise WorkerLostError(
            f"{left} conversations wait for cache that is never freed; give the replicas more KV blocks, or the placement "
            "policy a larger reservation", log,
        )  # fmt: skip
