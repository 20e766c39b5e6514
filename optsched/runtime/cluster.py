"""Execute a plan: the controller that runs arrivals on the real clock and asks the placement policy."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from optsched.domain.log import Event, ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, WorkerError
from optsched.placement.dispatcher import Dispatcher
from optsched.placement.policies import make_policy
from optsched.runtime.courses import ARRIVAL, Courses
from optsched.runtime.fleet import Fleet
from optsched.runtime.gpus import on_gpus
from optsched.runtime.messages import Died, Failed, FromWorker, Report
from optsched.runtime.observation import Observation
from optsched.runtime.processes import Launcher, LocalProcesses
from optsched.runtime.prompts import DrawnPrompts, Prompts
from optsched.runtime.ray_cluster import check_ray
from optsched.runtime.setups import refuse_what_memory_cannot_hold, worker_setups
from optsched.runtime.watch import Watch

Progress = Callable[[int, int], None]
Backend = Literal["local", "ray"]
PATIENCE_S = 120.0


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


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C was pressed after so many conversations had ended.

    Attributes
    ----------
    log
        What had happened until then; NaN where nothing had.
    """

    def __init__(self, ended: int, conversations: int, log: ExecutionLog) -> None:
        super().__init__(f"interrupted after {ended:,} of {conversations:,} conversations")
        self.log = log


def execute(
    plan: Plan,
    workload: Workload,
    *,
    seed: int = 0,
    device: str = "cpu",
    backend: Backend = "local",
    time_limit_s: float = 3600.0,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> ExecutionLog:
    """Execute a workload on a plan's replicas, on real workers in real time.

    A worker that dies, fails or hangs loses no conversation while another is left: what it held is computed again elsewhere,
    and the log's events say so.

    Parameters
    ----------
    plan
        Replicas, batching and placement policies.
    workload
        The conversations.
    seed
        Seed of the prompts, and of the weights where the plan names none.
    device
        ``cpu`` (one thread per rank) or ``cuda`` (the machine's GPUs in turn; see `optsched.runtime.gpus.deal_gpus`).
    backend
        ``local``: processes of this machine. ``ray``: actors of a Ray cluster (`optsched.runtime.ray_cluster.connect`).
    time_limit_s
        How long the workload may take, from its start.
    patience_s
        How long a worker may say nothing before it is given up; no step may take longer.
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
        If the runtime cannot do what the plan says, or a replica has more ranks than this machine has GPUs.
    InfeasibleError
        If a conversation fits no replica, this machine's memory not all of them, or the Ray cluster lacks a tier.
    MissingExtraError
        If Ray is asked for and not installed.
    WorkerError
        If no worker is left, or the time limit passes; as `WorkerLostError` with the log so far once the workload has started.
    RunInterrupted
        If Ctrl-C is pressed after that.
    """
    log, _ = run_plan(
        plan, workload, seed=seed, device=device, backend=backend, time_limit_s=time_limit_s, patience_s=patience_s,
        progress=progress,
    )  # fmt: skip
    return log


def run_plan(
    plan: Plan,
    workload: Workload,
    *,
    seed: int = 0,
    device: str = "cpu",
    backend: Backend = "local",
    time_limit_s: float = 3600.0,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
    prompts: Prompts | None = None,
    stops: tuple[int, ...] = (),
    double: bool = False,
) -> tuple[ExecutionLog, Observation]:
    """Do as `execute`, with given prompts (None: drawn ones), tokens that end a turn early, and in float64 if `double`.

    Returns
    -------
    tuple
        The log, and with it the output tokens.
    """
    setups = [
        replace(setup, double=double, limits=replace(setup.limits, stops=stops))
        for setup in worker_setups(plan, workload, seed, device, patience_s)
    ]
    launcher: Launcher = LocalProcesses()
    if backend == "ray":
        from optsched.runtime.ray_actors import RayActors

        check_ray()
        launcher = RayActors(plan, device)
    elif device == "cpu":
        refuse_what_memory_cannot_hold(plan)
    else:
        setups = on_gpus(setups, torch.cuda.device_count())
    with Fleet(setups, launcher) as fleet:
        run = _Run(plan, workload, fleet, seed, device, patience_s, prompts)
        return run.to_the_end(time_limit_s, progress), run.observed


class _Run:
    """One execution: timed events, what workers say, and whether they still do."""

    def __init__(
        self, plan: Plan, workload: Workload, fleet: Fleet, seed: int, device: str, patience_s: float = PATIENCE_S,
        prompts: Prompts | None = None,
    ) -> None:  # fmt: skip
        self.workload, self.fleet, self.seed, self.device, self.patience_s = workload, fleet, seed, device, patience_s
        index = {replica.id: position for position, replica in enumerate(plan.replicas)}
        assignments = {a.conversation: (index[a.prefill], index[a.decode]) for a in plan.placement.assignments}
        policy = make_policy(plan.placement.policy, plan.placement.parameters, assignments)
        shape = plan.llms[0].shape
        dispatcher = Dispatcher(
            policy, plan.replicas, plan.engine.block_tokens, plan.engine.max_batched_tokens, plan.links, shape.kv_bytes_per_token
        )
        self.observed = Observation(plan, workload)
        prompts = prompts or DrawnPrompts(seed, shape.vocab_size)
        self.courses = Courses(workload, prompts, fleet, dispatcher, self.observed, self.now)
        self.watch = Watch(fleet, patience_s)
        self.lost: set[int] = set()
        self.zero_s = 0.0

    def now(self) -> float:
        """Return the time since the start of the workload."""
        return time.monotonic() - self.zero_s

    def to_the_end(self, time_limit_s: float, progress: Progress | None) -> ExecutionLog:
        """Alternate between timed events and the workers' reports until every conversation ended."""
        self.zero_s = self.fleet.begin()
        try:
            while self.courses.ended < self.workload.num_conversations:
                self._advance(time_limit_s)
                if progress is not None:
                    progress(self.courses.ended_turns, self.workload.num_turns)
            self._drain()
        except KeyboardInterrupt as interrupt:
            self.observed.events.append(Event(self.now(), "interrupted", -1, -1))
            raise RunInterrupted(self.courses.ended, self.workload.num_conversations, self._log()) from interrupt
        except InfeasibleError as error:
            raise WorkerLostError(str(error), self._log()) from error
        return self._log()

    def _advance(self, time_limit_s: float) -> None:
        """Do what is due, and listen until something more is."""
        now, due = self.now(), self.courses.due
        if now > time_limit_s:
            raise WorkerLostError(f"{self._left()} after {time_limit_s:g} s; raise the time limit, or run fewer", self._log())
        if not due and self.watch.stuck(now):
            if self.courses.loosen():
                self.watch.restart(now)
            elif self.watch.idle_s(now) > self.patience_s:
                self._refuse_to_wait()
        while due and due[0][0] <= now:
            due_s, kind, subject = heapq.heappop(due)
            if kind == ARRIVAL:
                self.courses.arrive(subject, due_s)
            else:
                self.courses.turn_due(subject)
        until_s = min(due[0][0] if due else now + 1.0, now + 1.0)
        for replica, message in self.fleet.receive(min(until_s - self.now(), self.watch.pause_s)):
            self._hear(replica, message)
        self.watch.look(self.now())

    def _hear(self, replica: int, message: FromWorker) -> None:
        self.watch.heard(replica, self.now(), message)
        if isinstance(message, Report):
            self.observed.add(replica, message)
            for news in message.news:
                self.courses.hear(replica, news)
        elif isinstance(message, (Failed, Died)) and replica not in self.lost:
            self._lose(replica, self.fleet.describe(replica, message))

    def _lose(self, replica: int, reason: str) -> None:
        self.lost.add(replica)
        self.fleet.give_up(replica)
        self.watch.restart(self.now())
        if len(self.lost) == self.fleet.size:
            raise WorkerLostError(f"{reason}; {self._left()}", self._log())
        self.courses.lose(replica, reason)

    def _drain(self) -> None:
        """Wait for reports that no conversation depends on: hand-overs that the source confirms last."""
        deadline = self.now() + 5.0
        while self.observed.unconfirmed and self.now() < deadline and len(self.lost) < self.fleet.size:
            for replica, message in self.fleet.receive(0.1):
                if isinstance(message, Report):
                    self.observed.add(replica, message)
                elif isinstance(message, Died):
                    self.lost.add(replica)

    def _log(self) -> ExecutionLog:
        return self.observed.log(self.seed, self.device)

    def _left(self) -> str:
        left, count = self.workload.num_conversations - self.courses.ended, self.workload.num_conversations
        return f"{left} of {count} conversations were not finished"

    def _refuse_to_wait(self) -> None:
        left = self.workload.num_conversations - self.courses.ended
        raise WorkerLostError(
            f"{left} conversations wait for cache that is never freed; give the replicas more KV blocks, or the placement "
            "policy a larger reservation", self._log(),
        )  # fmt: skip
