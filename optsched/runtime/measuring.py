"""The controller of a measurement: keeps workers busy with episodes, and moves caches between them meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from optsched.domain.llm import Llm
from optsched.domain.log import Steps
from optsched.domain.scenario import EngineSpec
from optsched.errors import WorkerError
from optsched.runtime.episodes import Conversation, Episodes, longest_prompt
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import Died, Failed, Prefilled, Receive, Received, Report, Send, Sent, StartTurn, TurnEnded
from optsched.runtime.observation import merge_steps
from optsched.runtime.prompts import prompt_tokens

Array = np.ndarray
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 8
_PATIENCE_S = 600.0


class Measuring:
    """What is under way on a fleet whose steps and hand-overs are timed.

    Parameters
    ----------
    fleet
        The workers.
    llm, engine, kv_blocks
        What bounds the lengths of conversations.
    seed
        Seed of lengths and prompts.
    """

    def __init__(self, fleet: Fleet, llm: Llm, engine: EngineSpec, kv_blocks: int, seed: int) -> None:
        self._fleet, self._engine, self._kv_blocks = fleet, engine, kv_blocks
        self._episodes = iter(Episodes(llm, engine, kv_blocks, seed))
        self._longest = longest_prompt(llm, engine, kv_blocks)
        self._seed, self._vocab_size = seed, llm.vocab_size
        self._conversations: list[Conversation] = []
        self._open: dict[int, tuple[int, int]] = {}  # conversation -> worker, next turn
        self._steps: list[Steps] = []
        self._moves: list[tuple[float, float]] = []
        self._moving: set[int] = set()
        self._zero_s = fleet.begin()

    def steps(self) -> Steps:
        """Return every step so far."""
        return merge_steps(self._steps)

    def moves(self) -> Float64[Array, "X 2"]:
        """Return bytes and seconds of every hand-over so far."""
        return np.array(self._moves, float).reshape(-1, 2)

    def level(self, workers: range, seconds: float) -> None:
        """Keep these workers busy for so long, and wait until they are done."""
        end_s = self._now() + seconds
        while self._now() < end_s or self._open:
            if self._now() < end_s:
                self._supply(workers)
            self._listen()

    def handovers(self, seconds: float) -> None:
        """Move caches of several sizes from the first worker to the second, while all workers compute something else, too.

        Idle workers hand over several times as fast as those that share cores with their steps, and plans are about these.
        It takes so many seconds, but moves each size twice at least.
        """
        sizes = np.unique(np.maximum(1, self._longest // np.array([1 << 20, 16, 4, 2, 1])))
        end_s, rounds = self._now() + seconds, 0
        while rounds < _FEWEST_ROUNDS or (self._now() < end_s and rounds < _MOST_ROUNDS):
            rounds += 1
            for size in sizes.tolist():
                self._move(size)
        while self._open:
            self._listen()

    def _move(self, size: int) -> None:
        """Have a prompt of so many tokens computed by the first worker, and its cache handed over to the second."""
        index = self._start(0, Conversation(((size, 2),), hidden=False), stays=False)
        self._moving.add(index)
        (told,) = self._await(lambda news: isinstance(news, Prefilled) and news.conversation == index, 1)
        assert isinstance(told, Prefilled)
        self._hand_over(told, size)
        found = self._await(lambda news: isinstance(news, (Sent, Received)), 2)
        start_s = next(news.start_s for news in found if isinstance(news, Sent))
        received = next(news for news in found if isinstance(news, Received))
        self._moves.append((float(received.num_bytes), received.end_s - start_s))

    def _supply(self, workers: range) -> None:
        """Give those who have nothing to do the next episode; a conversation that is to move does not count."""
        occupied = {worker for index, (worker, _) in self._open.items() if index not in self._moving}
        for worker in set(workers) - occupied:
            for conversation in next(self._episodes):
                self._start(worker, conversation)

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
            self._supply(range(self._fleet.size))
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
