"""Move caches between replicas beside the steps: one short-lived thread per cache, so that neither side stops computing."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from optsched.runtime.messages import Setup
from optsched.runtime.recorder import Clock

_LOOPBACK = "lo0" if os.uname().sysname == "Darwin" else "lo"


class Exchange:
    """One worker's end of the data plane.

    Parameters
    ----------
    setup
        Who takes part, and where they meet.
    clock
        For the times of transfers.

    Attributes
    ----------
    sent
        Conversations that have left: target, and when they began to.
    arrived
        Conversations whose cache is here: its content, and when it came.
    wake_fd
        Becomes readable when either changes.
    """

    def __init__(self, setup: Setup, clock: Clock) -> None:
        self._clock = clock
        self.sent: deque[tuple[int, int, float]] = deque()
        self.arrived: deque[tuple[int, int, Tensor, float]] = deque()
        self.failed: deque[str] = deque()
        self.wake_fd, self._bell = os.pipe()
        os.set_blocking(self.wake_fd, False)
        self.connected = setup.num_workers > 1
        if self.connected:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
            dist.init_process_group(
                "gloo", init_method=f"file://{setup.rendezvous}", rank=setup.index, world_size=setup.num_workers,
                timeout=timedelta(hours=12),
            )  # fmt: skip

    def send(self, conversation: int, target: int, content: Tensor, start_s: float) -> None:
        """Start sending a cache; `sent` tells when it has left."""

        def work() -> None:
            dist.send(content, dst=target, tag=conversation)
            self.sent.append((conversation, target, start_s))

        self._start(work)

    def receive(self, conversation: int, source: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Start receiving a cache; `arrived` has it when it is here."""

        def work() -> None:
            content = torch.empty(shape, dtype=dtype)
            dist.recv(content, src=source, tag=conversation)
            self.arrived.append((conversation, source, content, self._clock.now()))

        self._start(work)

    def hush(self) -> None:
        """Take note of every ring of the bell."""
        try:
            while os.read(self.wake_fd, 4096):
                pass
        except BlockingIOError:
            return

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except RuntimeError as error:  # the other side is gone
                self.failed.append(str(error).splitlines()[0])
            os.write(self._bell, b"!")

        threading.Thread(target=run, daemon=True).start()
