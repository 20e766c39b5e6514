"""Workers as processes of this machine, and what any other way of starting them must offer."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from optsched.runtime import worker
from optsched.runtime.messages import Setup


class WorkerProcess(Protocol):
    """A worker's process, wherever it is."""

    @property
    def pid(self) -> int | None:
        """Process number on its machine."""

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it lives, or if nobody can tell."""

    def is_alive(self) -> bool:
        """Tell whether it lives."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most so many seconds."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def close(self) -> None:
        """Free what is kept of it."""


class Launcher(Protocol):
    """A way to start workers."""

    def start(self, setups: Sequence[Setup]) -> Iterator[tuple[WorkerProcess, Connection]]:
        """Start workers and yield each, in order, with the line to it."""

    def ahead_s(self, index: int) -> float:
        """Return by how much a worker's monotonic clock is ahead of this process's."""

    def lost(self, index: int) -> None:
        """Take note that a worker is gone, perhaps in the middle of a step."""

    def close(self) -> None:
        """Free what workers were started with; they have ended."""


class LocalProcesses:
    """Processes of this machine, forked from a server that imports torch once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._busy = self._context.RawArray("b", 0)

    def start(self, setups: Sequence[Setup]) -> Iterator[tuple[BaseProcess, Connection]]:
        """Start workers and yield each, in order, with the line to it."""
        context = self._context
        context.set_forkserver_preload(["optsched.runtime.preloaded"])
        if not len(self._busy):
            self._busy = context.RawArray("b", setups[0].num_workers)
        for setup in setups:
            mine, theirs = context.Pipe()
            name = f"optsched-replica-{setup.index}"
            process = context.Process(target=worker.main, args=(setup, theirs, self._busy), name=name, daemon=True)
            _start_deaf(process)
            theirs.close()
            yield process, mine

    def ahead_s(self, index: int) -> float:
        """Return 0: all processes of a machine share its monotonic clock."""
        return 0.0

    def lost(self, index: int) -> None:
        """Count a worker as busy no more."""
        self._busy[index] = 0

    def close(self) -> None:
        """Do nothing: the server ends with this process."""


def _start_deaf(process: BaseProcess) -> None:
    """Start a process that never hears Ctrl-C, not even while it starts: the controller answers it and ends the workers."""
    resource_tracker.ensure_running()  # starting it as part of the process would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server that forks the workers hands it on
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
