"""The process of one replica: listen, step, report, until told to stop or the controller is gone."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from optsched.errors import OptschedError, WorkerError
from optsched.runtime.cache import BlockPool
from optsched.runtime.departures import Departures
from optsched.runtime.gpus import take_device
from optsched.runtime.handover import Came, Exchange
from optsched.runtime.mailbox import Mailbox
from optsched.runtime.messages import (
    Drop,
    Dropped,
    Failed,
    Park,
    Parked,
    Ping,
    Pong,
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
    Unreceived,
    Zero,
)
from optsched.runtime.model.loading import weights_of
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.rank_pool import FirstPool
from optsched.runtime.ranks import Ranks, sharded_model
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
    setup, connection, busy
        As in `serve`.
    """
    code = serve(setup, connection, busy)
    os._exit(code)  # threads may still wait for another worker, and nobody should wait for them


def serve(setup: Setup, connection: Connection, busy: Flags) -> int:
    """Be a replica until told to stop, or until the controller is gone; return 0, or 1 if it failed.

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
        with contextlib.closing(Worker(setup, connection, busy, recorder)) as worker:
            worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the controller is gone
    except Exception as error:
        code = 1
        _confess(connection, recorder, error)
    busy[setup.index] = 0
    connection.close()
    return code


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
        self._ranks: Ranks | None = None
        self._model, self._pool = self._build(setup)
        self._exchange = Exchange(setup, self._clock)
        self._replica = Replica(setup.index, self._model, self._pool, setup.limits, setup.seed, self._clock, self._recorder)
        self._departures = Departures(self._replica, self._pool, self._exchange)
        self._mailbox: Mailbox | None = None
        self._expected: deque[Receive] = deque()
        self._coming: dict[int, Receive] = {}
        self._early: dict[int, StartTurn | Park] = {}
        self._reported_s = 0.0

    def _build(self, setup: Setup) -> tuple[Transformer, BlockPool]:
        blocks, block_tokens = setup.kv_blocks, setup.limits.block_tokens
        if setup.tp > 1:
            self._ranks = Ranks(setup)
            model = sharded_model(setup, 0, self._ranks)
            return model, FirstPool(setup.llm, blocks, block_tokens, model.dtype, model.device, self._ranks)
        dtype, device = torch.float64 if setup.double else None, take_device(setup, 0)
        model = Transformer(setup.llm, weights_of(setup.llm, setup.weights, setup.seed, dtype, str(device)))
        return model, BlockPool(setup.llm, blocks, block_tokens, model.dtype, device)

    def close(self) -> None:
        """Listen no more, and end the other ranks, if there are any."""
        if self._mailbox is not None:
            self._mailbox.close()
        if self._ranks is not None:
            self._ranks.close()

    def run(self) -> None:
        """Serve until told to stop."""
        warm_up(self._replica, self._setup)
        self._recorder.report()
        self._mailbox = Mailbox(self._connection, self._at_once, self._exchange.ring)
        self._connection.send(Ready(self._exchange.address))
        start_s: float | None = None
        while self._listen(self._mailbox):
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
            wait([self._exchange.wake_fd], patience)

    def _count_busy(self) -> int:
        return max(1, sum(self._busy[:]))

    def _report(self, now_s: float, urgent: bool) -> None:
        if urgent or (now_s - self._reported_s > _REPORT_EVERY_S and not self._recorder.empty):
            self._connection.send(self._recorder.report())
            self._reported_s = now_s

    def _at_once(self, message: ToWorker) -> bool:
        """Offer a cache without waiting for the end of the step; ranks of a replica work on one thing at a time."""
        if not isinstance(message, Send) or self._ranks is not None:
            return False
        self._departures.send(message)
        return True

    def _listen(self, mailbox: Mailbox) -> bool:
        """Handle what the controller said; False when it said stop."""
        self._exchange.hush()  # first: what rings from here on is seen before the worker sleeps
        for message in mailbox.take():
            if isinstance(message, Stop):
                return False
            self._handle(message)
        return True

    def _handle(self, message: ToWorker) -> None:
        if isinstance(message, (StartTurn, Park)):
            self._await_departure(message.conversation)
            if message.conversation in self._coming:
                self._early[message.conversation] = message
            else:
                self._begin(message)
        elif isinstance(message, Stay):
            self._replica.stay(message.conversation)
        elif isinstance(message, Drop):
            self._drop(message)
        elif isinstance(message, Send):
            self._departures.send(message)
        elif isinstance(message, Receive):
            self._coming[message.first.conversation] = message
            self._expected.append(message)
        elif isinstance(message, Ping):
            self._connection.send(Pong(message.number, len(self._coming) > len(self._expected)))
        elif isinstance(message, Zero):
            self._clock.zero_s = message.monotonic_s

    def _begin(self, message: StartTurn | Park) -> None:
        if isinstance(message, StartTurn):
            self._replica.start_turn(message)
            return
        cache, context = self._replica.park(message.conversation)
        self._recorder.news.append(Parked(message.conversation, self._clock.now(), cache, context))

    def _await_departure(self, conversation: int) -> None:
        """See to it that a cache which went away, and is back in spirit, has left: only the other side's word may lack."""
        deadline_s = self._clock.now() + self._setup.patience_s
        while self._departures.leaves(conversation):
            if self._clock.now() > deadline_s:
                raise WorkerError(f"the cache of conversation {conversation} did not leave within {self._setup.patience_s:g} s")
            wait([self._exchange.wake_fd], _RETRY_S)
            self._exchange.hush()
            self._note_departures()

    def _drop(self, message: Drop) -> None:
        """Forget a conversation, also where its cache is just leaving or coming."""
        conversation = message.conversation
        self._departures.withdraw(conversation)
        if (coming := self._coming.pop(conversation, None)) is not None:
            self._expected = deque(one for one in self._expected if one.transfer != coming.transfer)
        self._early.pop(conversation, None)
        if self._replica.holds(conversation):
            self._replica.drop(conversation)
        self._recorder.news.append(Dropped(conversation, message.number))

    def _move_caches(self) -> None:
        """Free what has left, queue what has come, and make room for what is announced, first come, first served."""
        exchange = self._exchange
        self._note_departures()
        while exchange.came:
            self._take_in(exchange.came.popleft())
        while self._expected and self._replica.expect(self._expected[0]):
            handover = self._expected.popleft()
            exchange.fetch(handover.transfer, handover.address, self._shape(handover), self._pool.storage.dtype)

    def _note_departures(self) -> None:
        for send, start_s in self._departures.left():
            self._recorder.news.append(Sent(send.transfer, send.conversation, send.target, start_s))

    def _take_in(self, came: Came) -> None:
        handover = next((coming for coming in self._coming.values() if coming.transfer == came.transfer), None)
        if handover is None:
            return
        conversation, replica, news = handover.first.conversation, self._replica, self._recorder.news
        if came.content is None:
            news.append(Unreceived(came.transfer, conversation, handover.source, came.reason))
            return
        first = replica.first_moving(handover.cache, handover.kept)
        self._pool.import_blocks(replica.blocks_of(conversation)[first:], came.content, handover.cache)
        replica.land(conversation)
        size = came.content.numel() * came.content.element_size()
        self._exchange.recycle(came.content)
        news.append(Received(came.transfer, conversation, handover.first.turn, handover.source, came.end_s, size))
        del self._coming[conversation]
        if conversation in self._early:
            self._begin(self._early.pop(conversation))

    def _shape(self, handover: Receive) -> tuple[int, int, int]:
        """Return the shape of what moves: layers, blocks, numbers per block."""
        blocks = len(self._replica.blocks_of(handover.first.conversation))
        moving = blocks - self._replica.first_moving(handover.cache, handover.kept)
        return self._pool.storage.shape[0], moving, self._pool.moved_width


def warm_up(replica: Replica, setup: Setup) -> None:
    """Execute one step of every shape class, on conversations that leave no trace: chunks, decodes, both kinds of cache.

    A GPU first records decode steps of the common sizes.
    """
    if replica.graphs is not None:
        replica.graphs.warm_up()
    budget = setup.limits.max_batched_tokens
    room = (setup.kv_blocks // 4) * setup.limits.block_tokens
    long = max(1, min(budget + budget // 2, setup.llm.max_positions - 8, room - 8))
    kinds = (False, True) if replica.pool.hidden_ratio else (False,)
    steps_left = 200 + 6 * long
    for hidden in kinds:
        for conversation, length in enumerate((long, max(1, long // 8), 1)):
            replica.start_turn(StartTurn(conversation, conversation, 0, 0.0, length, 3, last=True, hidden=hidden))
        while replica.has_work:
            steps_left -= 1
            if replica.step(replica.clock.now(), lambda: 1) is None or not steps_left:
                raise WorkerError(f"a pool of {setup.kv_blocks} cache blocks is too small to start with; plan more kv_blocks")
