"""The worker processes: start them, talk with them, and leave none behind."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from optsched.batching.policies.dispatch import compiled_policy
from optsched.errors import WorkerError
from optsched.runtime.handover import SECRET_BYTES, limit_waiting
from optsched.runtime.messages import Died, Failed, FromWorker, Ready, Setup, Stop, ToWorker, Zero
from optsched.runtime.processes import Launcher, LocalProcesses, WorkerProcess

START_LIMIT_S = 300.0
_GRACE_S = 5.0
_SEND_LIMIT_S = 30
_LEAD_S = 0.05  # between the announcement of time zero and time zero


class Fleet:
    """One process per replica; use it in a ``with`` statement.

    Parameters
    ----------
    setups
        What to build in each worker; the secret that they share is filled in here.
    launcher
        How to start them; as processes of this machine by default.
    """

    def __init__(self, setups: Sequence[Setup], launcher: Launcher | None = None) -> None:
        secret = secrets.token_bytes(SECRET_BYTES)
        self._setups, self._launcher = [replace(setup, secret=secret) for setup in setups], launcher or LocalProcesses()
        self._processes: list[WorkerProcess] = []
        self._connections: list[Connection] = []
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
        try:
            for process, line in self._launcher.start(self._setups):
                _limit_sending(line)
                self._processes.append(process)
                self._connections.append(line)
            self._await_ready(set(range(len(self._setups))))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all workers."""
        self.close()

    def _await_ready(self, missing: set[int]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
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
        """Announce time zero of the workload to all workers, wait for it, and return it on this process's monotonic clock."""
        zero_s = time.monotonic() + _LEAD_S
        for index in range(len(self._connections)):
            self.send(index, Zero(zero_s + self._launcher.ahead_s(index)))
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
        self._lose(index)
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
                self._lose(index)
                self._processes[index].join(_GRACE_S)
                heard.append((index, Died(self._processes[index].exitcode)))
        return heard

    def _lose(self, index: int) -> None:
        self._gone.add(index)
        self._launcher.lost(index)

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
        self._launcher.close()
        self._processes, self._connections = [], []


def _limit_sending(connection: Connection) -> None:
    """Let nobody wait for ever on a process that does not read."""
    line = socket.socket(fileno=connection.fileno())
    try:
        limit_waiting(line, _SEND_LIMIT_S, socket.SO_SNDTIMEO)
    finally:
        line.detach()


def _guard_hint(message: Failed | Died) -> str:
    if isinstance(message, Died) and message.exit_code == 1:
        return '; a script that executes plans needs its entry point under: if __name__ == "__main__"'
    return ""
