"""Workers to which bad things happen at given moments; import as ``from saboteur import ...``."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from factories import make_plan, make_workload

from optsched.domain.plan import Plan
from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.workload import Workload
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import Died, Drop, Dropped, FromWorker, Receive, Report, Setup, ToWorker

Kind = Literal["kill", "hang", "cut", "silence"]
_NOBODY = -1


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    kill, hang: with the `moment`-th message to or from any worker, `victim` is killed or stopped; a hand-over's number instead
    if `transfer`: then its source (victim 0) or its target (victim 1), `delay_s` later.
    cut, silence: the `moment`-th hand-over's connection breaks, or goes silent, after `bytes_through` bytes.
    """

    kind: Kind
    moment: int
    victim: int = 0
    transfer: bool = False
    delay_s: float = 0.0
    bytes_through: int = 0


class Saboteur(Fleet):
    """A fleet that suffers `faults`; `renew` starts anew those who were lost."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        super().__init__(setups)
        self.faults: list[Fault] = []
        self.struck: set[int] = set()
        self._messages = self._transfers = 0

    def prepare(self, faults: list[Fault]) -> None:
        self.faults, self.struck, self._messages, self._transfers = list(faults), set(), 0, 0

    def renew(self) -> None:
        self._hear_out()
        lost = {index for index in range(self.size) if not self.lives(index)}
        for index in lost:
            self._processes[index].join(10.0)
            self._connections[index].close()
            ((self._processes[index], self._connections[index]),) = self._launcher.start([self._setups[index]])
        self._gone -= lost
        self._await_ready(set(lost))

    def _hear_out(self) -> None:
        """Take in what workers still say of the run before, which the next would misread: nobody waits for a dropped copy."""
        silent = {index for index in range(self.size) if self.lives(index)}
        for index in silent:
            super().send(index, Drop(_NOBODY, _NOBODY))
        deadline_s = time.monotonic() + 60.0
        while silent and time.monotonic() < deadline_s:
            for index, message in super().receive(1.0):
                told = message.news if isinstance(message, Report) else ()
                if isinstance(message, Died) or any(isinstance(news, Dropped) and news.number == _NOBODY for news in told):
                    silent.discard(index)
        assert not silent

    def send(self, index: int, message: ToWorker) -> None:
        if isinstance(message, Receive):
            message = self._transfer(index, message)
        super().send(index, message)
        self._count()

    def receive(self, timeout_s: float) -> list[tuple[int, FromWorker]]:
        heard = super().receive(timeout_s)
        for _ in heard:
            self._count()
        return heard

    def _count(self) -> None:
        self._messages += 1
        for fault in self._take(lambda fault: fault.kind in ("kill", "hang") and not fault.transfer, self._messages):
            self._strike(fault.kind, fault.victim)

    def _transfer(self, target: int, message: Receive) -> Receive:
        self._transfers += 1
        for fault in self._take(lambda fault: fault.transfer or fault.kind in ("cut", "silence"), self._transfers):
            if fault.kind in ("cut", "silence"):
                message = replace(message, address=_bad_line(message.address, fault.bytes_through, fault.kind == "silence"))
            else:
                victim = target if fault.victim else message.source
                threading.Timer(fault.delay_s, self._strike, (fault.kind, victim)).start()
        return message

    def _take(self, suits, count: int) -> list[Fault]:
        due = [fault for fault in self.faults if suits(fault) and fault.moment <= count]
        self.faults = [fault for fault in self.faults if fault not in due]
        return due

    def _strike(self, kind: Kind, victim: int) -> None:
        if len(self.struck | {victim}) < self.size and self.lives(victim):  # one is left over
            self.struck.add(victim)
            with suppress(ProcessLookupError):
                os.kill(self.pid(victim), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def _bad_line(address: tuple[str, int], bytes_through: int, silent: bool) -> tuple[str, int]:
    """Return the address of a line to another that lets so many bytes through and then breaks, or goes silent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry() -> None:
        with listener, listener.accept()[0] as here, socket.create_connection(address) as there:
            threading.Thread(target=_carry, args=(here, there, 1 << 30), daemon=True).start()
            _carry(there, here, bytes_through)
            if silent:
                time.sleep(20.0)
            for line in (here, there):
                line.shutdown(socket.SHUT_RDWR)

    def attempt() -> None:
        with suppress(OSError):
            carry()

    threading.Thread(target=attempt, daemon=True).start()
    host, port = listener.getsockname()
    return str(host), int(port)


def _carry(source: socket.socket, target: socket.socket, most: int) -> None:
    with suppress(OSError):
        while most > 0 and (data := source.recv(min(most, 4096))):
            target.sendall(data)
            most -= len(data)


FLEETS: dict[str, tuple[list[Role], tuple[str, ...]]] = {
    "one prefiller": (["prefill", "decode", "decode"], ("conserve", "full-disaggregation", "per-turn-emulated", "adaptive")),
    "two prefillers": (["prefill", "prefill", "decode"], ("conserve", "full-disaggregation", "per-turn")),
    "all mixed": (["mixed", "mixed", "mixed"], ("collocated", "adaptive")),
}


def plan_of(fleet: str, policy: str) -> Plan:
    """Return a plan for one of `FLEETS`; its pools are small enough for caches to be evicted."""
    engine = EngineSpec(max_batched_tokens=32, max_sequences=4)
    parameters = {"wrong_share": 0.6} if policy == "per-turn-emulated" else {}
    return make_plan(FLEETS[fleet][0], policy=policy, kv_blocks=24, engine=engine, parameters=parameters)


def drawn_workload(rng: np.random.Generator) -> Workload:
    """Draw a few short conversations that overlap."""
    count = int(rng.integers(4, 7))
    turns = [[(int(rng.integers(1, 50)), int(rng.integers(1, 9))) for _ in range(int(rng.integers(1, 4)))] for _ in range(count)]
    return make_workload(turns, sorted(rng.uniform(0.0, 0.1, count).tolist()), gap_s=0.02)


def drawn_faults(rng: np.random.Generator, hangs: bool) -> list[Fault]:
    """Draw one to three faults."""
    kinds: list[Kind] = ["kill", "kill", "cut", *(["hang", "silence"] if hangs else [])]  # type: ignore[list-item]
    return [
        Fault(
            kinds[int(rng.integers(len(kinds)))],
            moment=int(rng.integers(1, 60) if (at_message := rng.random() < 0.6) else rng.integers(1, 6)),
            victim=int(rng.integers(3)),
            transfer=not at_message,
            delay_s=float(rng.choice([0.0, 0.001, 0.004])),
            bytes_through=int(rng.choice([0, 10, 5000])),
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
