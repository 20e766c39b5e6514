"""The worker processes: start them, talk with them, and leave none behind."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from optsched.batching.policies.dispatch import compiled_policy
from optsched.errors import WorkerError
from optsched.runtime import worker
from optsched.runtime.handover import SECRET_BYTES
from optsched.runtime.messages import Died, Failed, FromWorker, Ready, Setup, Stop, ToWorker, Zero

START_LIMIT_S = 300.0
_GRACE_S = 5.0
_SEND_LIMIT_S = 30
_LEAD_S = 0.05  # between the announcement of time zero and time zero


class Fleet:
    """One process per replica; use it in a ``with`` statement.

    Parameters
    ----------
    setups
        What to build in each worker; where they meet is filled in here.
    """

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._setups = list(setups)
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._gone: set[int] = set()
        self._addresses: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        """Start all workers and wait until they are warm.

        Raises
        ------
        WorkerError
            If one of them fails, dies or takes too long.
        """
        for setup in self._setups:  # here, so that the workers load them from numba's cache
            compiled_policy(setup.limits.policy)
        context = _context()
        self._folder = tempfile.TemporaryDirectory(prefix="optsched-")
        busy = context.RawArray("b", len(self._setups))
        secret = secrets.token_bytes(SECRET_BYTES)
        try:
            for setup in self._setups:
                mine, theirs = context.Pipe()
                _limit_sending(mine)
                complete = replace(setup, rendezvous=str(Path(self._folder.name)), secret=secret)
                name = f"optsched-replica-{setup.index}"
                process = context.Process(target=worker.main, args=(complete, theirs, busy), name=name, daemon=True)
                _start_deaf(process)
                theirs.close()
                self._processes.append(process)
                self._connections.append(mine)
            self._await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all workers."""
        self.close()

    def _await_ready(self) -> None:
        deadline, missing = time.monotonic() + START_LIMIT_S, set(range(len(self._setups)))
        while missing:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerError(f"{len(missing)} workers were not ready after {START_LIMIT_S:g} s; is the machine overloaded?")
            for index, message in self.receive(left):
                if isinstance(message, Ready):
                    missing.discard(index)
                    self._addresses[index] = message.address
                elif isinstance(message, (Failed, Died)):
                    raise WorkerError(f"{self.describe(index, message)} while it started{_guard_hint(message)}")

    def describe(self, index: int, message: Failed | Died) -> str:
        """Say in words how a worker was lost."""
        if isinstance(message, Failed):
            return f"worker {index} failed: {message.reason}"
        return f"worker {index} died (exit code {message.exit_code})"

    def begin(self) -> float:
        """Announce time zero of the workload to all workers, wait for it, and return it on the monotonic clock."""
        zero_s = time.monotonic() + _LEAD_S
        for index in range(len(self._connections)):
            self.send(index, Zero(zero_s))
        time.sleep(max(0.0, zero_s - time.monotonic()))
        return zero_s

    @property
    def size(self) -> int:
        """Number of workers, those that are gone included."""
        return len(self._connections)

    def address(self, index: int) -> tuple[str, int]:
        """Return where other workers find a worker."""
        return self._addresses[index]

    def lives(self, index: int) -> bool:
        """Tell whether nothing is known of a worker's end."""
        return index not in self._gone

    def kill(self, index: int) -> None:
        """End a worker at once."""
        self._processes[index].kill()

    def give_up(self, index: int) -> None:
        """End a worker and listen to it no more."""
        self._gone.add(index)
        self.kill(index)

    def pid(self, index: int) -> int:
        """Return a worker's process number."""
        return self._processes[index].pid or 0

    def send(self, index: int, message: ToWorker) -> None:
        """Tell a worker something; a worker that is gone hears nothing, and `receive` says that it is gone.

        A worker that does not listen any more is ended.
        """
        if index in self._gone:
            return
        try:
            self._connections[index].send(message)
        except BlockingIOError:
            self.kill(index)
        except OSError:
            return

    def receive(self, timeout_s: float) -> list[tuple[int, FromWorker]]:
        """Return what workers said, waiting at most so long for the first of it; a death is told once, as `Died`."""
        open_lines = {line: index for index, line in enumerate(self._connections) if index not in self._gone}
        heard: list[tuple[int, FromWorker]] = []
        for line in wait(list(open_lines), max(0.0, timeout_s)):
            assert isinstance(line, Connection)
            index = open_lines[line]
            try:
                while line.poll():
                    heard.append((index, line.recv()))
            except (EOFError, OSError):
                self._gone.add(index)
                self._processes[index].join(_GRACE_S)
                heard.append((index, Died(self._processes[index].exitcode)))
        return heard

    def close(self) -> None:
        """Ask all workers to end, and make those that do not."""
        for index in range(len(self._connections)):
            self.send(index, Stop())
        deadline = time.monotonic() + _GRACE_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for end in ("terminate", "kill"):
            stubborn = [process for process in self._processes if process.is_alive()]
            for process in stubborn:
                getattr(process, end)()
            for process in stubborn:
                process.join(_GRACE_S)
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._connections, self._folder = [], [], None


def _context() -> multiprocessing.context.ForkServerContext:
    """Return a way to start processes that imports torch once: workers are forked from a server that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    return context


def _start_deaf(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process that never hears Ctrl-C, not even while it starts: the controller answers it and ends the workers."""
    resource_tracker.ensure_running()  # starting it as part of the process would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server that forks the workers hands it on
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _limit_sending(connection: Connection) -> None:
    """Let nobody wait for ever on a process that does not read."""
    line = socket.socket(fileno=connection.fileno())
    try:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_LIMIT_S, 0))
    finally:
        line.detach()


def _guard_hint(message: Failed | Died) -> str:
    if isinstance(message, Died) and message.exit_code == 1:
        return '; a script that executes plans needs its entry point under: if __name__ == "__main__"'
    return ""
