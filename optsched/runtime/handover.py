"""Move caches between workers beside the steps: the target fetches over TCP, in threads, so that neither side stops computing.

Whoever has a cache to give away listens; whoever takes it connects, names the hand-over and the fleet's secret, reads the
bytes and confirms them. A connection lives for one cache: what happens to one says nothing about the next, and a worker that
dies takes no other with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from optsched.runtime.messages import Setup
from optsched.runtime.recorder import Clock

_HEADER = struct.Struct("!32sq")
_SIZE = struct.Struct("!q")
_THANKS = b"!"
_BOTH_WAYS = (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Left:
    """A cache that was fetched, and when that began."""

    transfer: int
    start_s: float


@dataclass(frozen=True, slots=True)
class Came:
    """A cache that is here, and when it came; or why it will not (`content` is None)."""

    transfer: int
    content: Tensor | None
    end_s: float
    reason: str = ""


class Exchange:
    """One worker's end of the data plane.

    Parameters
    ----------
    setup
        Where to listen, the secret, and how long to wait for the other side.
    clock
        For the times of transfers.

    Attributes
    ----------
    address
        Where others find this worker.
    left, came
        What happened since it was last looked at.
    wake_fd
        Becomes readable when either changes, or somebody rings.
    """

    def __init__(self, setup: Setup, clock: Clock) -> None:
        self._clock, self._secret, self._patience_s = clock, setup.secret.ljust(SECRET_BYTES), setup.patience_s
        self.left: deque[Left] = deque()
        self.came: deque[Came] = deque()
        self.wake_fd, self._bell = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._bell, False)
        self._offers: dict[int, Tensor] = {}
        self._spare: deque[Tensor] = deque(maxlen=1)
        self._changed = threading.Condition()
        self._listener = socket.create_server((setup.host, 0), backlog=128)
        host, port = self._listener.getsockname()[:2]
        self.address = (str(host), int(port))
        threading.Thread(target=self._accept, daemon=True).start()

    def offer(self, transfer: int, content: Tensor) -> None:
        """Let another worker fetch a cache; `left` tells when it has it."""
        with self._changed:
            self._offers[transfer] = content
            self._changed.notify_all()

    def withdraw(self, transfer: int) -> None:
        """Offer a cache no longer."""
        with self._changed:
            self._offers.pop(transfer, None)

    def fetch(self, transfer: int, address: tuple[str, int], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Start fetching a cache; `came` has it when it is here, or says why it will not come."""
        threading.Thread(target=self._fetch, args=(transfer, address, shape, dtype), daemon=True).start()

    def recycle(self, content: Tensor) -> None:
        """Take memory back that came with a cache and is not needed any more: the system is slow to give fresh pages."""
        self._spare.append(torch.empty(0, dtype=torch.uint8).set_(content.untyped_storage()))  # all of it, not just what was used

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        try:
            spare = self._spare.pop()
        except IndexError:
            spare = torch.empty(0, dtype=torch.uint8)
        flat = spare[:size] if len(spare) >= size else torch.empty(size, dtype=torch.uint8)
        return flat.view(dtype).view(shape)

    def ring(self) -> None:
        """Wake whoever waits for `wake_fd`."""
        with contextlib.suppress(BlockingIOError):  # it is full of rings that nobody has heard yet
            os.write(self._bell, b"!")

    def hush(self) -> None:
        """Take note of every ring of the bell."""
        try:
            while os.read(self.wake_fd, 4096):
                pass
        except BlockingIOError:
            return

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one request for a cache; the offer stands until the other side has confirmed it."""
        with connection:
            try:
                connection.settimeout(None)
                limit_waiting(connection, self._patience_s, *_BOTH_WAYS)
                secret, transfer = _HEADER.unpack(_read(connection, _HEADER.size))
                content = self._offered(transfer) if secret == self._secret else None
                if content is None:
                    return
                start_s, data = self._clock.now(), _bytes_of(content)
                connection.sendall(_SIZE.pack(len(data)))
                connection.sendall(data)
                if _read(connection, 1) != _THANKS:
                    return
            except OSError:
                return  # the other side says that nothing came
        self.withdraw(transfer)
        self.left.append(Left(transfer, start_s))
        self.ring()

    def _offered(self, transfer: int) -> Tensor | None:
        """Return what is offered, waiting for it: the other side may have heard of it first."""
        with self._changed:
            self._changed.wait_for(lambda: transfer in self._offers, self._patience_s)
            return self._offers.get(transfer)

    def _fetch(self, transfer: int, address: tuple[str, int], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        try:
            content = self._memory(shape, dtype)
            with socket.create_connection(address, timeout=self._patience_s) as connection:
                connection.settimeout(None)
                limit_waiting(connection, self._patience_s, *_BOTH_WAYS)
                connection.sendall(_HEADER.pack(self._secret, transfer))
                data = _bytes_of(content)
                (size,) = _SIZE.unpack(_read(connection, _SIZE.size))
                if size != len(data):
                    raise OSError(f"{size} bytes are offered, {len(data)} were expected")
                _fill(connection, data)
                connection.sendall(_THANKS)
            self.came.append(Came(transfer, content, self._clock.now()))
        except (OSError, RuntimeError, MemoryError) as error:
            self.came.append(Came(transfer, None, self._clock.now(), " ".join(str(error).split()) or type(error).__name__))
        self.ring()


def limit_waiting(connection: socket.socket, seconds: float, *options: int) -> None:
    """Have the system give up on a line that says nothing (``SO_RCVTIMEO``) or takes nothing (``SO_SNDTIMEO``) for so long.

    Python's own time-outs pass data in pieces, and each takes the interpreter's lock, which a worker that decodes rarely gives
    away; a call of the system moves a whole cache without it.
    """
    for option in options:
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def _bytes_of(content: Tensor) -> memoryview:
    """Return a tensor's memory."""
    return memoryview(content.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _read(connection: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    _fill(connection, buffer)
    return bytes(buffer)


def _fill(connection: socket.socket, buffer: bytearray | memoryview) -> None:
    view, done = memoryview(buffer), 0
    while done < len(view):
        try:
            count = connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise TimeoutError("timed out") from error
        if not count:
            raise ConnectionResetError("the other side closed the connection")
        done += count
