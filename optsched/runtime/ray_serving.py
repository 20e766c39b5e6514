"""A Ray actor that is a worker: it calls the controller, lets it compare clocks, and serves it on a line of its own."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from optsched.runtime.handover import SECRET_BYTES
from optsched.runtime.messages import Setup

CONNECT_LIMIT_S = 120.0
_PROBES = 8
_HELLO = struct.Struct(f"!{SECRET_BYTES}sqq")


class Serving:
    """The actor: a worker's whole life in one call."""

    def serve(self, address: tuple[str, int], index: int, secret: bytes, flags: str) -> None:
        """Serve the controller at an address as worker `index`; workers of one node share `flags`."""
        import ray

        from optsched.runtime import worker

        caller = socket.create_connection(address, timeout=CONNECT_LIMIT_S)
        caller.sendall(_HELLO.pack(secret.ljust(SECRET_BYTES), index, os.getpid()))
        caller.settimeout(None)
        line = Connection(caller.detach())
        for _ in range(_PROBES):
            line.recv()
            line.send(time.monotonic())
        setup: Setup = line.recv()  # not as Ray hands arguments over: their arrays cannot be written to
        busy = _SharedFlags.open(flags, setup.num_workers)
        gpus = tuple(range(setup.tp))  # Ray shows an actor just those that it reserved for it
        worker.serve(replace(setup, host=ray.util.get_node_ip_address(), gpus=gpus), line, busy)


def take_call(caller: socket.socket, secret: bytes) -> tuple[int, int, Connection] | None:
    """Return which worker calls, its process number and the line to it; None if it does not know the secret."""
    caller.settimeout(CONNECT_LIMIT_S)
    said, index, pid = _HELLO.unpack(_receive(caller, _HELLO.size))
    if said != secret.ljust(SECRET_BYTES):
        caller.close()
        return None
    caller.settimeout(None)
    return index, pid, Connection(caller.detach())


def clock_ahead_s(line: Connection) -> float:
    """Return by how much a calling worker's monotonic clock is ahead of ours, to half of the quickest of some round trips.

    References
    ----------
    Cristian, F., "Probabilistic clock synchronization", Distributed Computing 3, 1989.
    """
    best_s, ahead_s = float("inf"), 0.0
    for _ in range(_PROBES):
        asked_s = time.monotonic()
        line.send(None)
        there_s = float(line.recv())
        heard_s = time.monotonic()
        if heard_s - asked_s < best_s:
            best_s, ahead_s = heard_s - asked_s, there_s - (asked_s + heard_s) / 2
    return ahead_s


def remove_flags(name: str) -> None:
    """Remove the flags that the workers of this node shared."""
    _flags_path(name).unlink(missing_ok=True)


class _SharedFlags:
    """One byte per replica, shared by the workers of a node: whether it is in a step."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def open(cls, name: str, count: int) -> _SharedFlags:
        """Map the flags; whoever comes first makes them."""
        number = os.open(_flags_path(name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(number, count)  # what is there stays
            return cls(mmap.mmap(number, count))
        finally:
            os.close(number)

    def __setitem__(self, index: int, value: int) -> None:
        """Set one flag."""
        self._memory[index] = value

    def __getitem__(self, index: slice) -> list[int]:
        """Return flags."""
        return list(self._memory[index])


def _flags_path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name


def _receive(caller: socket.socket, count: int) -> bytes:
    """Return so many bytes; blanks where the caller hung up."""
    found = b""
    while len(found) < count and (part := caller.recv(count - len(found))):
        found += part
    return found.ljust(count)
