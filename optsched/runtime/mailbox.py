"""Read what the controller says while the worker computes, so that what cannot wait for the end of a step need not."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from optsched.runtime.messages import Stop, ToWorker


class Mailbox:
    """Messages of the controller, read by a thread of their own.

    Parameters
    ----------
    line
        The controller's end.
    at_once
        Called in that thread with each message; True: it is dealt with. Others wait for `take`, in order.
    ring
        Called when there is something to take.
    """

    def __init__(self, line: Connection, at_once: Callable[[ToWorker], bool], ring: Callable[[], None]) -> None:
        self._line, self._at_once, self._ring = line, at_once, ring
        self._waiting: deque[ToWorker] = deque()
        self._end: Exception | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def take(self) -> Iterator[ToWorker]:
        """Return the messages that wait, one after the other.

        Raises
        ------
        Exception
            After the last of them, what ended the reading: `EOFError` or `OSError` if the controller is gone.
        """
        while self._waiting or self._end is not None:
            if not self._waiting and self._end is not None:  # nothing is added after the end
                raise self._end
            yield self._waiting.popleft()

    def close(self) -> None:
        """Read no more; the worker may still say something."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._line.fileno())) as end:
            end.shutdown(socket.SHUT_RD)

    def _read(self) -> None:
        try:
            while True:
                message: ToWorker = self._line.recv()
                if self._at_once(message):
                    continue
                self._waiting.append(message)
                self._ring()
                if isinstance(message, Stop):
                    return
        except Exception as error:  # also what dealing with a message met: the worker fails of it, as of its own errors
            self._end = error
            self._ring()
