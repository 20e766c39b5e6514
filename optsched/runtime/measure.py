"""Time steps and cache hand-overs of real workers, with one, two, three of them busy at once: what calibration learns from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from optsched.batching.state import NO_PARAMETERS
from optsched.domain.llm import Llm
from optsched.domain.log import Steps
from optsched.domain.scenario import EngineSpec
from optsched.errors import SpecError, WorkerError
from optsched.runtime.episodes import Conversation, Episodes, longest_prompt
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import (
    Died,
    Failed,
    Limits,
    Prefilled,
    Receive,
    Received,
    Report,
    Send,
    Sent,
    Setup,
    StartTurn,
    TurnEnded,
)
from optsched.runtime.model.weights import refuse_what_cannot_run
from optsched.runtime.observation import merge_steps
from optsched.runtime.prompts import prompt_tokens

Array = np.ndarray
_POOL_BYTES = 512e6
_HANDOVER_ROUNDS = 4
_PATIENCE_S = 600.0
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed.

    Attributes
    ----------
    steps
        Every step: what it worked on, and how many replicas were busy.
    durations_s
        The whole time of each step, from the end of the one before (if there was no pause): scheduling, bookkeeping and
        reports included.
    handover_bytes, handover_s
        Size and duration of every cache that moved from one worker to another; empty if a single worker was measured.
    """

    steps: Steps
    durations_s: Float64[Array, " S"]
    handover_bytes: Float64[Array, " X"]
    handover_s: Float64[Array, " X"]

    def link(self) -> tuple[float, float]:
        """Fit ``seconds = latency_s + bytes / bytes_per_s`` to the hand-overs by least squares on relative error.

        Returns
        -------
        tuple
            Latency in seconds, and bytes per second.
        """
        weights = 1.0 / self.handover_s
        columns = np.stack([np.ones_like(weights), self.handover_bytes], axis=1) * weights[:, None]
        (latency_s, per_byte), *_ = np.linalg.lstsq(columns, np.ones_like(weights), rcond=None)
        if per_byte <= 0:  # too few bytes to tell: all of it is latency, at least as fast as the fastest
            return float(np.median(self.handover_s)), float((self.handover_bytes / self.handover_s).max())
        return max(0.0, float(latency_s)), 1.0 / float(per_byte)


def measure_steps(
    llm: Llm,
    *,
    replicas: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    seconds_budget: float = 12.0,
    engine: EngineSpec | None = None,
    policy: str = "vllm-chunked",
    device: str = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> Measured:
    """Run random conversations on real workers and time every step and hand-over.

    Parameters
    ----------
    llm
        What the workers run, with random weights.
    replicas
        Numbers of workers to keep busy at once, in turn.
    seed
        Seed of weights, lengths and prompts; no run that is judged later should use it.
    seconds_budget
        How long to measure steps, all numbers of workers together; starting the workers comes on top.
    engine
        Block size and limits of a step.
    policy
        Batching policy.
    device
        ``cpu`` or ``cuda``.
    progress
        Called with seconds done and in all.

    Raises
    ------
    SpecError
        If the runtime cannot run the llm, or no number of workers is given.
    WorkerError
        If a worker fails.
    """
    refuse_what_cannot_run(llm)
    if not replicas or min(replicas) < 1 or seconds_budget <= 0:
        raise SpecError("measuring needs at least one worker and some seconds; raise them")
    engine = engine or EngineSpec(max_batched_tokens=min(512, llm.max_positions))
    setups = _setups(llm, max(replicas), seed, engine, policy, device)
    with Fleet(setups) as fleet:
        run = _Measuring(fleet, llm, engine, setups[0].kv_blocks, seed)
        # Interleaved, so that a drift of the machine's speed does not look like a slow-down by neighbours.
        levels = sorted(replicas) * _ROUNDS
        for done, busy in enumerate(levels, start=1):
            run.level(range(busy), seconds_budget / len(levels))
            if progress is not None:
                progress(seconds_budget * done / len(levels), seconds_budget)
        if max(replicas) > 1:
            run.handovers()
    return run.result()


def _setups(llm: Llm, count: int, seed: int, engine: EngineSpec, policy: str, device: str) -> list[Setup]:
    block_bytes = engine.block_tokens * llm.kv_bytes_per_token
    kv_blocks = int(np.clip(_POOL_BYTES / block_bytes, 64, 8192))
    limits = Limits(
        policy,
        engine.block_tokens,
        int(engine.watermark * kv_blocks),
        engine.max_batched_tokens,
        engine.max_sequences,
        0.0,
        1e9,
        1e9,
        NO_PARAMETERS,
    )
    return [Setup(index, count, llm, None, seed, kv_blocks, limits, device) for index in range(count)]


class _Measuring:
    """The controller of a measurement: keeps some workers supplied with episodes."""

    def __init__(self, fleet: Fleet, llm: Llm, engine: EngineSpec, kv_blocks: int, seed: int) -> None:
        self._fleet, self._engine, self._kv_blocks = fleet, engine, kv_blocks
        self._episodes = iter(Episodes(llm, engine, kv_blocks, seed))
        self._longest = longest_prompt(llm, engine, kv_blocks)
        self._seed, self._vocab_size = seed, llm.vocab_size
        self._conversations: list[Conversation] = []
        self._open: dict[int, tuple[int, int]] = {}  # conversation -> worker, next turn
        self._steps: list[Steps] = []
        self._moves: list[tuple[float, float]] = []
        self._zero_s = fleet.begin()

    def result(self) -> Measured:
        """Return everything timed so far."""
        steps = merge_steps(self._steps)
        moves = np.array(self._moves, float).reshape(-1, 2)
        return Measured(steps, steps.end_s - steps.start_s, moves[:, 0], moves[:, 1])

    def level(self, workers: range, seconds: float) -> None:
        """Keep these workers busy for so long, and wait until they are done."""
        end_s = self._now() + seconds
        while self._now() < end_s or self._open:
            if self._now() < end_s:
                occupied = {worker for worker, _ in self._open.values()}
                for worker in set(workers) - occupied:
                    for conversation in next(self._episodes):
                        self._start(worker, conversation)
            self._listen()

    def handovers(self) -> None:
        """Move caches of several sizes from the first worker to the second, one at a time."""
        sizes = np.unique(np.geomspace(1, self._longest, 6).astype(int))
        for size in [*sizes] * _HANDOVER_ROUNDS:
            self._start(0, Conversation(((int(size), 2),), hidden=False), stays=False)
            (told,) = self._await(lambda news: isinstance(news, Prefilled), 1)
            assert isinstance(told, Prefilled)
            self._hand_over(told, int(size))
            found = self._await(lambda news: isinstance(news, (Sent, Received)), 2)
            start_s = next(news.start_s for news in found if isinstance(news, Sent))
            received = next(news for news in found if isinstance(news, Received))
            self._moves.append((float(received.num_bytes), received.end_s - start_s))
            while self._open:
                self._listen()

    def _hand_over(self, told: Prefilled, size: int) -> None:
        """Move the cache of a prompt of `size` tokens, whose first output token is out."""
        conversation = told.conversation
        prompt = prompt_tokens(self._seed, conversation, 0, size, self._vocab_size)
        first = replace(self._turn(conversation, 0, stays=True), tokens=np.append(prompt, told.token), emitted=1)
        address = self._fleet.address(0)
        self._fleet.send(1, Receive(conversation, first, 0, address, told.cache, told.context, told.time_s))
        self._fleet.send(0, Send(conversation, conversation, 1))

    def _await(self, wanted: Callable[[object], bool], count: int) -> list[object]:
        found: list[object] = []
        deadline_s = self._now() + _PATIENCE_S
        while len(found) < count and self._now() < deadline_s:
            found += [news for news in self._listen() if wanted(news)]
        if len(found) < count:
            raise WorkerError(f"a cache hand-over did not end within {_PATIENCE_S:g} s")
        return found

    def _now(self) -> float:
        return time.monotonic() - self._zero_s

    def _start(self, worker: int, conversation: Conversation, stays: bool = True) -> int:
        index = len(self._conversations)
        self._conversations.append(conversation)
        self._open[index] = worker, 1
        self._fleet.send(worker, self._turn(index, 0, stays))
        return index

    def _turn(self, index: int, number: int, stays: bool) -> StartTurn:
        conversation = self._conversations[index]
        new, output = conversation.turns[number]
        last = number + 1 == len(conversation.turns)
        return StartTurn(index, index, number, self._now(), new, output, last, stays, conversation.hidden)

    def _listen(self) -> list[object]:
        """Take in what the workers report, and start the turns that follow."""
        told: list[object] = []
        for worker, message in self._fleet.receive(1.0):
            if isinstance(message, (Failed, Died)):
                raise WorkerError(f"{self._fleet.describe(worker, message)} while steps were measured")
            if not isinstance(message, Report):
                continue
            self._steps.append(message.steps)
            told += message.news
            for news in message.news:
                if isinstance(news, TurnEnded):
                    self._go_on(news.conversation, worker)
        return told

    def _go_on(self, index: int, worker: int) -> None:
        _, number = self._open[index]
        if number == len(self._conversations[index].turns):
            del self._open[index]
            return
        self._open[index] = worker, number + 1
        self._fleet.send(worker, self._turn(index, number, stays=True))
