"""The worker processes: start them, talk with them, and leave none behind."""

from __future__ import annotations

import multiprocessing
import signal
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
from optsched.runtime.messages import Died, Failed, FromWorker, Ready, Setup, Stop, ToWorker, Zero

START_LIMIT_S = 300.0
_GRACE_S = 5.0
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

    def __enter__(self) -> Self:
        """Start all workers and wait until they are warm.

        Raises
        ------
        WorkerError
            If one of them fails, dies or takes too long.
        """
        for setup in self._setups:  # here, so that the workers load them from numba's cache
            compiled_policy(setup.limits.policy)
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="optsched-")
        busy = context.RawArray("b", len(self._setups))
        try:
            for setup in self._setups:
                mine, theirs = context.Pipe()
                complete = replace(setup, rendezvous=str(Path(self._folder.name) / "rendezvous"))
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

    def send(self, index: int, message: ToWorker) -> None:
        """Tell a worker something; a worker that is gone hears nothing, and `receive` says that it is gone."""
        try:
            self._connections[index].send(message)
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


def _start_deaf(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process that never hears Ctrl-C, not even while it starts: the controller answers it and ends the workers."""
    resource_tracker.ensure_running()  # starting it as part of the process would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _guard_hint(message: Failed | Died) -> str:
    if isinstance(message, Died) and message.exit_code == 1:
        return '; a script that executes plans needs its entry point under: if __name__ == "__main__"'
    return ""
