"""Caches on their way out of a worker: offered the moment the controller says so, forgotten when the other side has them."""

from __future__ import annotations

import threading

from optsched.runtime.cache import BlockPool
from optsched.runtime.handover import Exchange
from optsched.runtime.messages import Send
from optsched.runtime.replica import Replica


class Departures:
    """The sending side of one worker; `send` may be called by any thread, the rest by the one that computes.

    A cache that is to leave is not written any more: its conversation was held back after its prefill, or parked.

    Parameters
    ----------
    replica, pool, exchange
        Who holds the caches, where they are, and who hands them out.
    """

    def __init__(self, replica: Replica, pool: BlockPool, exchange: Exchange) -> None:
        self._replica, self._pool, self._exchange = replica, pool, exchange
        self._leaving: dict[int, Send] = {}
        self._lock = threading.Lock()

    def send(self, message: Send) -> None:
        """Copy a conversation's blocks and offer them."""
        replica, conversation = self._replica, message.conversation
        with self._lock:  # nobody drops it, and so reuses its blocks, half-way through the copy
            cache = replica.cache_of(conversation)
            blocks = replica.blocks_of(conversation)[replica.first_moving(cache, message.kept) :]
            self._leaving[message.transfer] = message
            self._exchange.offer(message.transfer, self._pool.export_blocks(blocks, cache))

    def left(self) -> list[tuple[Send, float]]:
        """Return what has left since this was last asked, and when it began to; forget those that keep no copy here."""
        found: list[tuple[Send, float]] = []
        while self._exchange.left:
            left = self._exchange.left.popleft()
            with self._lock:
                message = self._leaving.pop(left.transfer, None)
            if message is None:
                continue  # dropped in the meantime
            if not message.keep:
                self._replica.forget(message.conversation)
            found.append((message, left.start_s))
        return found

    def withdraw(self, conversation: int) -> None:
        """Offer a conversation's caches no longer."""
        with self._lock:
            for transfer in [number for number, send in self._leaving.items() if send.conversation == conversation]:
                self._exchange.withdraw(transfer)
                del self._leaving[transfer]

    def leaves(self, conversation: int) -> bool:
        """Tell whether a conversation's cache is on its way out, and nothing of it stays."""
        with self._lock:
            return any(send.conversation == conversation and not send.keep for send in self._leaving.values())
