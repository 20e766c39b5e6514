"""The process of one replica: listen, step, report, until told to stop or the controller is gone."""

from __future__ import annotations

import os
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from optsched.errors import OptschedError, WorkerError
from optsched.runtime.cache import BlockPool
from optsched.runtime.handover import Exchange
from optsched.runtime.messages import (
    Failed,
    Ready,
    Receive,
    Received,
    Send,
    Sent,
    Setup,
    StartTurn,
    Stay,
    Stop,
    ToWorker,
    Zero,
)  # fmt: skip
from optsched.runtime.model.huggingface import load_folder
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica

_REPORT_EVERY_S = 0.25
_RETRY_S = 0.005  # a policy that schedules nothing is asked again: time alone may change its mind


class Flags(Protocol):
    """One byte per replica of this machine, in shared memory: whether it is in a step."""

    def __setitem__(self, index: int, value: int) -> None:
        """Set one flag."""
        ...

    def __getitem__(self, index: slice) -> list[int]:
        """Return flags."""
        ...


def main(setup: Setup, connection: Connection, busy: Flags) -> None:
    """Run a worker process to its end.

    Parameters
    ----------
    setup
        The replica to build.
    connection
        The controller's end of the line.
    busy
        Flags of all replicas.
    """
    code, recorder = 0, Recorder(keep_journal=setup.keep_journal)
    try:
        torch.set_num_threads(1)
        Worker(setup, connection, busy, recorder).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the controller is gone
    except Exception as error:
        code = 1
        _confess(connection, recorder, error)
    busy[setup.index] = 0
    connection.close()
    # Threads may still wait for a peer inside gloo; interpreter shutdown would wait for them, or crash on them.
    os._exit(code)


def _confess(connection: Connection, recorder: Recorder, error: Exception) -> None:
    reason = str(error) if isinstance(error, OptschedError) else f"{type(error).__name__}: {error}"
    try:
        connection.send(recorder.report())
        connection.send(Failed(" ".join(reason.split())))
    except OSError:
        return


class Worker:
    """A replica, its line to the controller and its end of the data plane."""

    def __init__(self, setup: Setup, connection: Connection, busy: Flags, recorder: Recorder) -> None:
        self._setup, self._connection, self._busy = setup, connection, busy
        self._clock, self._recorder = Clock(), recorder
        llm, device = setup.llm, setup.device
        weights = (
            load_folder(llm, setup.weights, None, device) if setup.weights else random_weights(llm, setup.seed, None, device)
        )
        self._model = Transformer(llm, weights)
        self._pool = BlockPool(llm, setup.kv_blocks, setup.limits.block_tokens, self._model.dtype, device)
        self._exchange = Exchange(setup, self._clock)
        self._replica = Replica(setup.index, self._model, self._pool, setup.limits, setup.seed, self._clock, self._recorder)
        self._expected: deque[Receive] = deque()
        self._on_the_way: set[int] = set()
        self._early: dict[int, StartTurn] = {}
        self._reported_s = 0.0

    def run(self) -> None:
        """Serve until told to stop."""
        warm_up(self._replica, self._setup)
        self._recorder.report()
        self._connection.send(Ready())
        start_s: float | None = None
        while self._listen():
            self._move_caches()
            self._busy[self._setup.index] = 1
            # A step is charged with everything since the one before it: bookkeeping, reports and messages too.
            start_s = self._replica.step(self._clock.now() if start_s is None else start_s, self._count_busy)
            if start_s is not None:
                self._report(start_s, bool(self._recorder.news))
                continue
            self._busy[self._setup.index] = 0
            self._report(self._clock.now(), not self._recorder.empty)
            patience = _RETRY_S if self._replica.has_work else None
            wait([self._connection, self._exchange.wake_fd], patience)

    def _count_busy(self) -> int:
        return max(1, sum(self._busy[:]))

    def _report(self, now_s: float, urgent: bool) -> None:
        if urgent or (now_s - self._reported_s > _REPORT_EVERY_S and not self._recorder.empty):
            self._connection.send(self._recorder.report())
            self._reported_s = now_s

    def _listen(self) -> bool:
        """Handle what the controller said; False when it said stop."""
        while self._connection.poll():
            message: ToWorker = self._connection.recv()
            if isinstance(message, Stop):
                return False
            self._handle(message)
        return True

    def _handle(self, message: ToWorker) -> None:
        if isinstance(message, StartTurn):
            if message.conversation in self._on_the_way:
                self._early[message.conversation] = message
            else:
                self._replica.start_turn(message)
        elif isinstance(message, Stay):
            self._replica.stay(message.conversation)
        elif isinstance(message, Send):
            start_s = self._clock.now()
            content = self._pool.export_blocks(self._replica.blocks_of(message.conversation))
            self._exchange.send(message.conversation, message.target, content, start_s)
        elif isinstance(message, Receive):
            self._on_the_way.add(message.first.conversation)
            self._expected.append(message)
        elif isinstance(message, Zero):
            self._clock.zero_s = message.monotonic_s

    def _move_caches(self) -> None:
        """Free what has left, queue what has come, and make room for what is announced, first come, first served."""
        exchange, replica, news = self._exchange, self._replica, self._recorder.news
        exchange.hush()
        if exchange.failed:
            raise WorkerError(f"a cache hand-over failed: {exchange.failed[0]}")
        while exchange.sent:
            conversation, target, start_s = exchange.sent.popleft()
            replica.forget(conversation)
            news.append(Sent(conversation, target, start_s))
        while exchange.arrived:
            conversation, source, content, end_s = exchange.arrived.popleft()
            self._pool.import_blocks(replica.blocks_of(conversation), content)
            replica.land(conversation)
            news.append(Received(conversation, source, end_s, content.numel() * content.element_size()))
            self._on_the_way.discard(conversation)
            if conversation in self._early:
                replica.start_turn(self._early.pop(conversation))
        while self._expected and replica.expect(self._expected[0]):
            handover = self._expected.popleft()
            storage = self._pool.storage
            shape = (storage.shape[0], len(replica.blocks_of(handover.first.conversation)), storage.shape[2])
            exchange.receive(handover.first.conversation, handover.source, shape, storage.dtype)


def warm_up(replica: Replica, setup: Setup) -> None:
    """Execute one step of every shape class, on conversations that leave no trace: chunks, decodes, both kinds of cache."""
    budget = setup.limits.max_batched_tokens
    room = (setup.kv_blocks // 4) * setup.limits.block_tokens
    long = max(1, min(budget + budget // 2, setup.llm.max_positions - 8, room - 8))
    kinds = (False, True) if setup.llm.hidden_ratio < 1 else (False,)
    steps_left = 200 + 6 * long
    for hidden in kinds:
        for conversation, length in enumerate((long, max(1, long // 8), 1)):
            replica.start_turn(StartTurn(conversation, conversation, 0, 0.0, length, 3, last=True, hidden=hidden))
        while replica.has_work:
            steps_left -= 1
            if replica.step(replica.clock.now(), lambda: 1) is None or not steps_left:
                raise WorkerError(f"a pool of {setup.kv_blocks} cache blocks is too small to start with; plan more kv_blocks")
