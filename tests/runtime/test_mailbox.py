"""What the controller says is heard in order, and a cache leaves without waiting for the end of a step."""

from __future__ import annotations

from multiprocessing import Pipe
from multiprocessing.connection import wait

import pytest
import torch
from factories import TINY

from optsched.batching.state import KV, NO_PARAMETERS
from optsched.runtime.cache import BlockPool
from optsched.runtime.departures import Departures
from optsched.runtime.handover import Exchange
from optsched.runtime.mailbox import Mailbox
from optsched.runtime.messages import Limits, Ping, Prefilled, Send, Setup, StartTurn, Stop, ToWorker
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica

LIMITS = Limits("vllm-chunked", 16, 0, 64, 8, 0.0, 1e9, 1e9, NO_PARAMETERS)
SETUP = Setup(0, 2, TINY, None, 0, 16, LIMITS, "cpu", secret=b"secret", patience_s=60.0)
WAIT_S = 60.0


def heard(mailbox: Mailbox, rung: Exchange, count: int) -> list[ToWorker]:
    """Take messages until there are so many."""
    found: list[ToWorker] = []
    while len(found) < count:
        wait_for(rung)
        found += mailbox.take()
    return found


def hear_all(mailbox: Mailbox, rung: Exchange, found: list[ToWorker]) -> None:
    """Take messages until none can come any more."""
    while True:
        wait_for(rung)
        found += mailbox.take()


def wait_for(exchange: Exchange) -> None:
    assert wait([exchange.wake_fd], WAIT_S)
    exchange.hush()


def test_what_is_not_dealt_with_at_once_is_heard_in_order_until_the_controller_is_gone() -> None:
    here, there = Pipe()
    exchange = Exchange(SETUP, Clock())
    at_once: list[ToWorker] = []
    mailbox = Mailbox(here, lambda message: isinstance(message, Send) and not at_once.append(message), exchange.ring)
    for number in range(5):
        there.send(Ping(number))
        there.send(Send(number, 0, 1))
    assert heard(mailbox, exchange, 5) == [Ping(number) for number in range(5)]
    there.send(Ping(5))
    there.close()
    found: list[ToWorker] = []
    with pytest.raises(EOFError):
        hear_all(mailbox, exchange, found)
    assert found == [Ping(5)]
    assert at_once == [Send(number, 0, 1) for number in range(5)]


def test_a_closed_mailbox_and_one_that_heard_stop_read_no_more() -> None:
    here, there = Pipe()
    exchange = Exchange(SETUP, Clock())
    mailbox = Mailbox(here, lambda _: False, exchange.ring)
    there.send(Stop())
    assert heard(mailbox, exchange, 1) == [Stop()]
    there.send(Ping(1))
    assert here.poll(WAIT_S)
    assert here.recv() == Ping(1)  # nobody else took it
    other, far = Pipe()
    closed = Mailbox(other, lambda _: False, exchange.ring)
    closed.close()
    wait_for(exchange)
    with pytest.raises((EOFError, OSError)):
        list(closed.take())
    far.close()


def test_what_dealing_with_a_message_met_is_raised_where_messages_are_taken() -> None:
    here, there = Pipe()
    exchange = Exchange(SETUP, Clock())

    def fail(message: ToWorker) -> bool:
        raise MemoryError("no room for the copy")

    mailbox = Mailbox(here, fail, exchange.ring)
    there.send(Send(0, 0, 1))
    wait_for(exchange)
    with pytest.raises(MemoryError, match="no room for the copy"):
        list(mailbox.take())


def test_a_cache_is_fetched_from_a_worker_that_takes_no_message() -> None:
    """As one does not that is in the middle of a step: only the mailbox's thread and the exchange's act."""
    model = Transformer(TINY, random_weights(TINY, 0))
    pool = BlockPool(TINY, 16, 16, model.dtype, "cpu")
    clock, recorder = Clock(), Recorder()
    replica = Replica(0, model, pool, LIMITS, 0, clock, recorder)
    replica.start_turn(StartTurn(0, 0, 0, 0.0, 40, 3, last=True, stays=False))
    replica.step(0.0, lambda: 1)
    assert any(isinstance(news, Prefilled) for news in recorder.report().news)
    blocks = replica.blocks_of(0)
    held = pool.export_blocks(blocks, KV)

    source, target = Exchange(SETUP, clock), Exchange(SETUP, clock)
    departures = Departures(replica, pool, source)
    here, there = Pipe()

    def at_once(message: ToWorker) -> bool:
        assert isinstance(message, Send)
        departures.send(message)
        return True

    Mailbox(here, at_once, source.ring)
    target.fetch(7, source.address, tuple(held.shape), held.dtype)
    there.send(Send(7, 0, 1))
    wait_for(target)
    came = target.came.popleft()
    assert came.content is not None, came.reason
    torch.testing.assert_close(came.content, held, rtol=0, atol=0)
    assert departures.leaves(0)
    wait_for(source)
    ((send, start_s),) = departures.left()
    assert send == Send(7, 0, 1)
    assert start_s <= came.end_s
    assert not departures.leaves(0)
    assert not replica.holds(0)
    assert replica.slots.tables.num_free == 16


def test_a_cache_whose_conversation_is_dropped_is_offered_no_longer() -> None:
    model = Transformer(TINY, random_weights(TINY, 0))
    pool = BlockPool(TINY, 16, 16, model.dtype, "cpu")
    replica = Replica(0, model, pool, LIMITS, 0, Clock(), Recorder())
    replica.start_turn(StartTurn(0, 0, 0, 0.0, 10, 3, last=True, stays=False))
    replica.step(0.0, lambda: 1)
    exchange = Exchange(SETUP, Clock())
    departures = Departures(replica, pool, exchange)
    departures.send(Send(1, 0, 1))
    departures.withdraw(0)
    assert not departures.leaves(0)
    assert not exchange._offers
