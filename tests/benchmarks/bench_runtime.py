"""Overheads of the runtime; run with ``make bench``, or as a script for the tables of docs/benchmarks.md.

A worker's whole decode step is timed beside the bare model step of the same batch, in turns, in CPU seconds of one thread; a
hand-over between two processes on the clock, beside a plain copy of as many bytes.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from optsched import catalog
from optsched.batching.state import NO_PARAMETERS, Decision
from optsched.domain.llm import Llm
from optsched.runtime.cache import BlockPool
from optsched.runtime.handover import Exchange
from optsched.runtime.messages import Limits, Setup, StartTurn
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica
from optsched.runtime.step import step

BATCH, CONTEXT, STEPS = 32, 256, 40
LLMS = {"demo-qwen3": {}, "smollm2-135m": {"dtype": "fp32"}, "tiny-opt": {}}
MEGABYTES = (16, 64, 256)
ROUNDS = 5


@dataclass(frozen=True)
class Timed:
    """CPU seconds of a worker's decode step, of the bare model's, and of reporting the step; medians."""

    worker_s: float
    bare_s: float
    report_s: float

    @property
    def ratio(self) -> float:
        return (self.worker_s + self.report_s) / self.bare_s


def decoding_replica(llm: Llm) -> Replica:
    """Return a replica on which `BATCH` conversations decode."""
    torch.set_num_threads(1)
    model = Transformer(llm, random_weights(llm, 0))
    limits = Limits("vllm-chunked", 16, 0, 4096, 2 * BATCH, 0.0, 1e9, 1e9, NO_PARAMETERS)
    blocks = BATCH * -(-(CONTEXT + 4 * STEPS) // 16)
    replica = Replica(0, model, BlockPool(llm, blocks, 16, model.dtype, "cpu"), limits, 0, Clock(), Recorder())
    for conversation in range(BATCH):
        replica.start_turn(StartTurn(conversation, conversation, 0, 0.0, CONTEXT, 4 * STEPS, last=True))
    while len(replica.running) < BATCH or replica.slots.requests.emitted[replica.running].min() < 2:
        replica.step(0.0, lambda: 1)
    replica.recorder.report()
    return replica


def time_steps(llm: Llm) -> Timed:
    """Alternate between a worker's step and the bare step of the same batch (its results are as before, so it may be repeated)."""
    replica = decoding_replica(llm)
    worker, bare, report = [], [], []
    for _ in range(STEPS):
        slots = np.array(replica.running)
        count = len(slots)
        decision: Decision = replica.slots.decision
        decision.tokens[slots], decision.cache[slots] = 1, replica.slots.requests.cache[slots]
        batch, _ = replica._compose(slots)
        started = time.process_time()
        step(replica.model, replica.pool, batch)
        bare.append(time.process_time() - started)
        started = time.process_time()
        replica.step(0.0, lambda: 1)
        worker.append(time.process_time() - started)
        started = time.process_time()
        multiprocessing.reduction.ForkingPickler.dumps(replica.recorder.report())
        report.append(time.process_time() - started)
        assert len(replica.running) == count == BATCH
    return Timed(float(np.median(worker)), float(np.median(bare)), float(np.median(report)))


def _exchange_setup(llm: Llm) -> Setup:
    limits = Limits("vllm-chunked", 16, 0, 64, 8, 0.0, 1e9, 1e9, NO_PARAMETERS)
    return Setup(0, 2, llm, None, 0, 64, limits, "cpu")


def _offer(line: Connection, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    exchange = Exchange(_exchange_setup(catalog.llm("demo-qwen3")), Clock())
    for transfer, size in enumerate(sizes):
        exchange.offer(transfer, torch.ones(size // 4))
    line.send(exchange.address)
    line.recv()


def time_handovers() -> dict[int, tuple[float, float]]:
    """Return GB/s of a hand-over from another process, and of a copy to fresh memory here, by megabytes; best of some rounds."""
    sizes = [megabytes * 10**6 for megabytes in MEGABYTES for _ in range(ROUNDS)]
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_offer, args=(theirs, sizes), daemon=True)
    process.start()
    address = mine.recv()
    exchange = Exchange(_exchange_setup(catalog.llm("demo-qwen3")), Clock())
    found: dict[int, tuple[float, float]] = {}
    for transfer, size in enumerate(sizes):
        started = time.perf_counter()
        exchange.fetch(transfer, address, (size // 4,), torch.float32)
        while not exchange.came:
            time.sleep(1e-4)
        moved_s = time.perf_counter() - started
        content = exchange.came.popleft().content
        assert content is not None
        assert content[-1] == 1
        started = time.perf_counter()
        content.clone()  # into fresh pages
        copied_s = time.perf_counter() - started
        exchange.recycle(content)
        best = found.get(size // 10**6, (0.0, 0.0))
        found[size // 10**6] = max(best[0], size / moved_s / 1e9), max(best[1], size / copied_s / 1e9)
    mine.send(None)
    process.join()
    return found


@pytest.mark.parametrize("name", LLMS)
def test_a_decode_step_of_a_worker_takes_at_most_1_3_of_the_bare_step(name: str) -> None:
    assert time_steps(catalog.llm(name).replace(**LLMS[name])).ratio <= 1.3


def test_a_cache_is_handed_over_at_a_gigabyte_per_second() -> None:
    assert max(moved for moved, _ in time_handovers().values()) >= 1.0


def main() -> None:
    """Print the tables."""
    print("| llm | bare step, ms | worker's step, ms | report, ms | ratio |\n| --- | ---: | ---: | ---: | ---: |")
    for name, changes in LLMS.items():
        timed = time_steps(catalog.llm(name).replace(**changes))
        columns = (timed.bare_s, timed.worker_s, timed.report_s)
        print(f"| {name} | {' | '.join(f'{value * 1e3:.2f}' for value in columns)} | {timed.ratio:.2f} |")
    print("\n| MB | hand-over, GB/s | copy, GB/s |\n| ---: | ---: | ---: |")
    for megabytes, (moved, copied) in time_handovers().items():
        print(f"| {megabytes} | {moved:.2f} | {copied:.2f} |")


if __name__ == "__main__":
    main()
