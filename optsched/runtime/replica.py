"""The engine of one replica: schedule -> run -> postprocess, on the same arrays and policies as the simulator's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.state import HIDDEN, KV, Counts, Engine
from optsched.domain.journal import Decided, Forgotten, Landed, RoomMade, Stayed, TakenOut, TurnQueued
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.graphs import decode_graphs
from optsched.runtime.messages import Incident, Limits, Prefilled, Receive, StartTurn, TurnEnded
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.slots import Slots
from optsched.runtime.step import step

Array = np.ndarray


class Replica:
    """One copy of an llm with its cache pool and its queue.

    Parameters
    ----------
    index
        Its index in the plan.
    model, pool, limits
        What it computes with, where it caches, and how it batches.
    seed
        Seed of the prompts.
    clock, recorder
        What it reads the time from, and where it notes what it did.

    Attributes
    ----------
    graphs
        What replays decode steps on a GPU; None elsewhere.
    """

    def __init__(
        self, index: int, model: Transformer, pool: BlockPool, limits: Limits, seed: int, clock: Clock, recorder: Recorder
    ) -> None:
        self.index, self.model, self.pool, self.limits, self.seed = index, model, pool, limits, seed
        self.clock, self.recorder = clock, recorder
        self.graphs = decode_graphs(model, pool, limits.max_sequences)
        self.slots = Slots(pool.num_blocks)
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.idle: list[int] = []
        self._decide = compiled_policy(limits.policy)
        self._per_block = np.array([pool.block_tokens, max(pool.hidden_tokens, 1), pool.block_tokens])  # by kind of cache

    # --- what arrives and leaves

    def start_turn(self, turn: StartTurn) -> None:
        """Queue a turn: of a conversation that is new here, or of one that is idle here."""
        slot, tokens = self.slots.slot_of.get(turn.conversation), self._tokens(turn)
        told = (turn.conversation, turn.turn, turn.arrival_s, turn.stays, len(tokens), turn.emitted, slot is not None)
        if slot is None:
            slot = self.slots.open(turn, tokens)
        else:
            self.idle.remove(slot)
            self.slots.next_turn(slot, turn, tokens)
        self.waiting.append(slot)
        self.recorder.enter(TurnQueued(*told))

    def stay(self, conversation: int) -> None:
        """Let a prefilled conversation that was held back decode here."""
        slot = self.slots.slot_of[conversation]
        (self.idle if self.slots.is_over(slot) else self.running).append(slot)
        self.recorder.enter(Stayed(conversation))

    def _tokens(self, turn: StartTurn) -> Int64[Array, " t"]:
        if turn.tokens is not None:
            return turn.tokens
        return prompt_tokens(self.seed, turn.conversation, turn.number, turn.new_tokens, self.model.llm.vocab_size)

    def holds(self, conversation: int) -> bool:
        """Tell whether anything of a conversation is here."""
        return conversation in self.slots.slot_of

    def park(self, conversation: int) -> tuple[int, int]:
        """Take an idle conversation out of the queue, so that nothing evicts it; return kind and tokens of its cache."""
        slot, requests = self.slots.slot_of[conversation], self.slots.requests
        self.idle.remove(slot)
        self.recorder.enter(TakenOut(conversation))
        return int(requests.cache[slot]), int(requests.context[slot])

    def drop(self, conversation: int) -> None:
        """Forget a conversation, whatever it is doing."""
        slot = self.slots.slot_of[conversation]
        for queue in (self.running, self.waiting, self.idle):
            if slot in queue:
                queue.remove(slot)
        self.forget(conversation)

    def blocks_of(self, conversation: int) -> Int64[Array, " b"]:
        """Return the blocks that hold a conversation's cache."""
        return self.slots.tables.blocks(self.slots.slot_of[conversation])

    def forget(self, conversation: int) -> None:
        """Free everything that a conversation held here."""
        self.slots.close(self.slots.slot_of[conversation])
        self.recorder.enter(Forgotten(conversation))

    def cache_of(self, conversation: int) -> int:
        """Return the kind of a conversation's cache."""
        return int(self.slots.requests.cache[self.slots.slot_of[conversation]])

    def first_moving(self, cache: int, kept: int) -> int:
        """Return the index of the first block that moves where the target keeps a copy of the first `kept` tokens."""
        return kept // int(self._per_block[cache])

    def expect(self, handover: Receive) -> bool:
        """Set blocks aside for a cache that is handed over; False while the pool has no room for it."""
        turn = handover.first
        slot = self.slots.slot_of.get(turn.conversation)
        held = 0 if slot is None else int(self.slots.tables.held[slot])
        needed = -(-handover.context // int(self._per_block[handover.cache]))
        if needed - held > self.slots.tables.num_free or (slot is not None and not handover.kept):
            return False
        slot, requests = self.slots.adopt(handover, self._tokens(turn), needed), self.slots.requests
        requests.late[slot] = turn.emitted > 0 and handover.token_s - turn.arrival_s >= self.limits.ttft_slo_s
        cached = (handover.context, handover.cache, needed, int(requests.new_tokens[slot]))
        made = (turn.conversation, turn.turn, turn.arrival_s, *cached, turn.emitted, turn.stays, handover.token_s)
        self.recorder.enter(RoomMade(*made))
        return True

    def land(self, conversation: int) -> None:
        """Queue a conversation whose cache has arrived."""
        slot = self.slots.slot_of[conversation]
        (self.idle if self.slots.is_over(slot) else self.waiting).append(slot)
        self.recorder.enter(Landed(conversation))

    # --- a step

    @property
    def has_work(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.running or self.waiting)

    def step(self, start_s: float, count_busy: Callable[[], int]) -> float | None:
        """Execute one step and return when its tokens were out; None if the policy schedules nothing.

        Parameters
        ----------
        start_s
            When the time that this step is charged with began: the end of the step before, if there was no pause.
        count_busy
            Returns how many replicas of the host are in a step, this one included.
        """
        if not self.has_work:
            return None
        now_s, free_blocks = self.clock.now(), self.slots.tables.num_free
        scheduled, gone = self._schedule(now_s)
        evicted = gone
        while gone and not len(scheduled):  # it only evicted, and may serve somebody now; each time fewer hold a cache
            scheduled, gone = self._schedule(now_s)
            evicted += gone
        if not len(scheduled):
            self.recorder.enter(Decided(now_s, now_s, free_blocks, (), evicted))
            return None
        busy = count_busy()
        batch, row = self._compose(scheduled)
        following = self._compute(batch)
        end_s = self.clock.now()
        self._postprocess(scheduled, batch, following, now_s, end_s)
        self.recorder.step((self.index, start_s, end_s, *row, busy))
        if self.recorder.keeps_journal:
            columns = np.transpose((self.slots.conversation[scheduled], batch.new, batch.cache)).tolist()
            self.recorder.enter(Decided(now_s, end_s, free_blocks, tuple((c, n, kind) for c, n, kind in columns), evicted))
        return end_s

    def _compute(self, batch: Batch) -> Int64[Array, " B"]:
        if self.graphs is not None and (size := self.graphs.size_for(batch)) is not None:
            return self.graphs.step(batch, size)
        return step(self.model, self.pool, batch)

    def _schedule(self, now_s: float) -> tuple[Int64[Array, " n"], tuple[int, ...]]:
        """Ask the policy, apply its evictions, and return the scheduled slots and the evicted conversations in queue order."""
        requests, decision = self.slots.requests, self.slots.decision
        queue = np.array(self.running + self.waiting + self.idle, dtype=np.int64)
        counts = Counts(len(self.running), len(self.waiting), len(self.idle))
        decision.tokens[queue] = decision.evict[queue] = 0
        self._decide(requests, queue, counts, self._engine(now_s), decision)
        held = (requests.context[queue] > 0) | (np.arange(len(queue)) < counts.running)
        evicted = queue[(decision.evict[queue] == 1) & held]
        if len(evicted):
            self._evict(evicted.tolist(), now_s)
        queue = np.array(self.running + self.waiting, dtype=np.int64)
        scheduled: Int64[Array, " n"] = queue[decision.tokens[queue] > 0]
        admitted = decision.tokens[queue[len(self.running) :]] > 0
        if admitted.any():
            self.running += [slot for slot, now in zip(self.waiting, admitted, strict=True) if now]
            self.waiting = [slot for slot, now in zip(self.waiting, admitted, strict=True) if not now]
        return scheduled, tuple(self.slots.conversation[evicted].tolist())

    def _engine(self, now_s: float) -> Engine:
        limits = self.limits
        return Engine(
            now_s, self.slots.tables.num_free, self.pool.num_blocks, limits.block_tokens, limits.watermark_blocks,
            limits.max_batched_tokens, limits.max_sequences, self.pool.hidden_ratio, limits.rho_s_per_block,
            limits.ttft_slo_s, limits.tbt_slo_s, limits.parameters, limits.law,
        )  # fmt: skip

    def _evict(self, evicted: list[int], now_s: float) -> None:
        preempted = [slot for slot in self.running if slot in evicted]
        for slot in evicted:
            kind = "preempted" if slot in preempted else "evicted"
            self.recorder.news.append(Incident(now_s, kind, int(self.slots.conversation[slot])))  # type: ignore[arg-type]
            self.slots.drop_cache(slot)
        self.running = [slot for slot in self.running if slot not in preempted]
        self.waiting = preempted + self.waiting

    def _compose(self, scheduled: Int64[Array, " n"]) -> tuple[Batch, tuple[float, ...]]:
        """Grow the caches and lay out the batch; with it the step's totals in the order of `Steps`."""
        slots, requests, decision = self.slots, self.slots.requests, self.slots.decision
        new, context = decision.tokens[scheduled], requests.context[scheduled]
        fresh = scheduled[context == 0]
        requests.cache[fresh] = np.where(slots.hidden[fresh], HIDDEN, decision.cache[fresh])
        cache = requests.cache[scheduled]
        needed = -(-(context + new) // self._per_block[cache])
        slots.tables.grow(scheduled, needed)
        requests.blocks[scheduled] = needed
        decode = (requests.emitted[scheduled] > 0) & (requests.new_tokens[scheduled] == 1) & (context > 0)
        pairs = float((new * (context + 0.5 * new))[~decode].sum())
        totals = (
            int(new[~decode].sum()), pairs, int(context[~decode].sum()), len(scheduled), int(decode.sum()),
            int(context[decode & (cache == KV)].sum()), int(context[cache == HIDDEN].sum()),
        )  # fmt: skip
        emits = requests.new_tokens[scheduled] == new
        tokens = slots.known_tokens(scheduled, context, new)
        return Batch(tokens, new, context, cache, slots.tables.table[scheduled], emits), totals

    def _postprocess(
        self, scheduled: Int64[Array, " n"], batch: Batch, following: Int64[Array, " n"], start_s: float, end_s: float
    ) -> None:
        """Advance the requests by what was computed, and let those that ended a prefill, a turn or a conversation leave."""
        slots, requests = self.slots, self.slots.requests
        for slot in scheduled[~slots.started[scheduled]]:
            slots.started[slot] = True
            self.recorder.started(int(slots.turn[slot]), start_s)
        requests.context[scheduled] += batch.new
        requests.new_tokens[scheduled] -= batch.new
        emitters, tokens = scheduled[batch.emits], following[batch.emits]
        self.recorder.tokens(slots.turn[emitters], requests.emitted[emitters], tokens, end_s)
        slots.append(emitters, tokens)
        target = np.where(requests.emitted[emitters] == 0, self.limits.ttft_slo_s, self.limits.tbt_slo_s)
        requests.late[emitters] |= end_s - requests.last_token_s[emitters] >= target
        requests.emitted[emitters] += 1
        requests.last_token_s[emitters] = end_s
        requests.new_tokens[emitters] = 1
        if self.limits.stops:
            stopped = emitters[np.isin(tokens, self.limits.stops)]
            slots.output_tokens[stopped] = requests.emitted[stopped]
        over = requests.emitted[emitters] == slots.output_tokens[emitters]
        prefilled = slots.fresh[emitters]
        slots.fresh[emitters] = False
        for position in np.flatnonzero(over | prefilled):
            self._leave(int(emitters[position]), int(tokens[position]), bool(prefilled[position]), bool(over[position]), end_s)

    def _leave(self, slot: int, token: int, prefilled: bool, over: bool, end_s: float) -> None:
        slots, requests, news = self.slots, self.slots.requests, self.recorder.news
        conversation, ended = int(slots.conversation[slot]), over and bool(slots.last[slot])
        if prefilled:
            cache, context = int(requests.cache[slot]), int(requests.context[slot])
            news.append(Prefilled(conversation, end_s, cache, context, token, ended))
        if over:
            news.append(TurnEnded(conversation, int(slots.turn[slot]), end_s))
        held_back = prefilled and not slots.stays[slot]
        if over or held_back:
            self.running.remove(slot)
        if ended:
            slots.close(slot)
        elif over and not held_back:
            self.idle.append(slot)
