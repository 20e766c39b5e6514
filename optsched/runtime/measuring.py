"""The controller of a measurement: keeps workers busy with episodes, and moves caches between them meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from optsched.domain.llm import Llm
from optsched.domain.log import Steps
from optsched.domain.scenario import EngineSpec
from optsched.errors import WorkerError
from optsched.runtime.episodes import Conversation, Episodes, longest_prompt
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import (
    Died,
    Failed,
    Prefilled,
    Receive,
    Received,
    Report,
    Send,
    Sent,
    StartTurn,
    TurnEnded,
    Unreceived,
)
from optsched.runtime.observation import merge_steps
from optsched.runtime.prompts import prompt_tokens

Array = np.ndarray
_MOST_ROUNDS = 8
_WAYS = ((0, 2, 1), (1, 2, 1), (3, 48, 2))
"""Conversations beside one that moves, tokens that each decodes, and conversations of each size.

Alone; while another is computed; while another is computed and another decoded.
"""
_UNCOUNTED = 2


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
        self._moves: list[tuple[float, float, float]] = []
        self._left_s: dict[int, float] = {}
        self._came: dict[int, Received] = {}
        self._zero_s = fleet.begin()

    def steps(self) -> Steps:
        """Return every step so far."""
        return merge_steps(self._steps)

    def moves(self) -> Float64[Array, "X 3"]:
        """Return bytes, start and end (s) of every hand-over so far."""
        return np.array(self._moves, float).reshape(-1, 3)

    def level(self, workers: range, end_s: float) -> None:
        """Keep these workers busy until a time (s from the beginning), and wait until they are done: one episode at least."""
        self._supply(workers)
        while self._now() < end_s or self._open:
            if self._now() < end_s:
                self._supply(workers)
            self._listen()

    def handovers(self, seconds: float) -> None:
        """Have the first worker compute prompts of several sizes, and the second decode them.

        So caches move as in a plan that has prefillers: between idle workers, while the source computes the next prompt, and
        while the target decodes what came before, too, when they take several times as long. It takes so many seconds, but moves
        each size in each of these ways at least once. The first moves of all do not count: the system is slow to give the
        processes fresh memory.
        """
        sizes = np.unique(np.maximum(1, self._longest // np.array([1 << 20, 16, 4, 2, 1])))[::-1].tolist()
        for _ in range(_UNCOUNTED):
            self._one_by_one(sizes[:1], besides=0, output_tokens=2)
        self._moves.clear()
        began_s, rounds = self._now(), 0
        while not rounds or (self._now() < began_s + seconds and rounds < _MOST_ROUNDS):
            rounds += 1
            for besides, output_tokens, times in _WAYS:
                self._one_by_one(sizes * times, besides, output_tokens)

    def _one_by_one(self, sizes: Sequence[int], besides: int, output_tokens: int) -> None:
        """Start a conversation of each size in turn, so that at most so many are under way beside it, and wait for all."""
        for size in sizes:
            self._start(0, Conversation(((size, output_tokens),), hidden=False), stays=False)
            while len(self._open) > besides:
                self._move()
        while self._open:
            self._move()

    def _move(self) -> None:
        """Take in what the workers report, and hand over the caches of prompts that are computed."""
        for news in self._listen():
            if isinstance(news, Prefilled):
                self._hand_over(news)
            elif isinstance(news, Sent):
                self._left_s[news.transfer] = news.start_s
            elif isinstance(news, Received):
                self._came[news.transfer] = news
            elif isinstance(news, Unreceived):
                raise WorkerError(f"a cache was not handed over while steps were measured: {news.reason}")
        for transfer in self._left_s.keys() & self._came.keys():  # the source's word may come last
            received = self._came.pop(transfer)
            self._moves.append((float(received.num_bytes), self._left_s.pop(transfer), received.end_s))

    def _supply(self, workers: range) -> None:
        """Give those who have nothing to do the next episode."""
        occupied = {worker for worker, _ in self._open.values()}
        for worker in set(workers) - occupied:
            for conversation in next(self._episodes):
                self._start(worker, conversation)

    def _hand_over(self, told: Prefilled) -> None:
        """Move the cache of a prompt whose first output token is out."""
        conversation = told.conversation
        ((size, _),) = self._conversations[conversation].turns
        prompt = prompt_tokens(self._seed, conversation, 0, size, self._vocab_size)
        first = replace(self._turn(conversation, 0, stays=True), tokens=np.append(prompt, told.token), emitted=1)
        address = self._fleet.address(0)
        self._fleet.send(1, Receive(conversation, first, 0, address, told.cache, told.context, told.time_s))
        self._fleet.send(0, Send(conversation, conversation, 1))

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
