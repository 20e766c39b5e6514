"""Keep the books that placement policies look at, and grant what they decide; one copy for both clocks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optsched.domain.plan import PlanLink, PlanReplica
from optsched.errors import InfeasibleError
from optsched.placement.view import Away, ConversationView, FleetView, PlacementPolicy, ReplicaView, TurnView


@dataclass(frozen=True, slots=True)
class Grant:
    """A conversation may start its prefill on a replica, or move to (or stay on) its decoder."""

    kind: Literal["prefill", "decode"]
    conversation: int
    replica: int


class Dispatcher:
    """Ask the placement policy at arrivals, prefill ends and releases; each of its queues is served first come, first served.

    Parameters
    ----------
    policy
        The placement policy.
    replicas
        The plan's replicas.
    block_tokens
        Tokens per KV block.
    max_batched_tokens
        Token budget of replicas that do not name their own.
    links, kv_bytes_per_token
        The plan's links and the cache that they carry; only policies that ask for times, or place later turns, need them.
    """

    def __init__(
        self,
        policy: PlacementPolicy,
        replicas: Sequence[PlanReplica],
        block_tokens: int,
        max_batched_tokens: int,
        links: Sequence[PlanLink] = (),
        kv_bytes_per_token: float = 0.0,
    ) -> None:
        self._policy = policy
        self._kv_bytes_per_token = kv_bytes_per_token
        index = {replica.id: position for position, replica in enumerate(replicas)}
        self._links = {(index[link.source], index[link.target]): link for link in links}
        self._fastest: list[PlanLink | None] = [None] * len(replicas)
        for link in links:
            known = self._fastest[index[link.source]]
            if known is None or link.bytes_per_s > known.bytes_per_s:
                self._fastest[index[link.source]] = link
        self._replicas = tuple(replicas)
        self._step_of = [(0, 0, 0.0)] * len(replicas)
        self._seen: list[ReplicaView | None] = [None] * len(replicas)  # None: it changed since somebody looked
        self._fleet: FleetView | None = None
        self._chunk = [replica.max_batched_tokens or max_batched_tokens for replica in replicas]
        self._kv_tokens = [replica.kv_blocks * block_tokens for replica in replicas]
        self._alive = [True] * len(replicas)
        self._roles = [replica.role for replica in replicas]
        self._reserved = [0] * len(replicas)
        self._backlog_tokens = [0] * len(replicas)
        self._backlog_s = [0.0] * len(replicas)
        self._conversations = [0] * len(replicas)
        self._waiting_prefill: defaultdict[int, deque[ConversationView]] = defaultdict(deque)
        self._waiting_decode: defaultdict[int, deque[ConversationView]] = defaultdict(deque)
        self._view: dict[int, ConversationView] = {}
        self._prefill: dict[int, int] = {}
        self._decode: dict[int, int] = {}
        self._reservation: dict[int, int] = {}
        self._work: dict[int, tuple[int, float]] = {}

    def arrive(self, now_s: float, conversation: ConversationView) -> list[Grant]:
        """Note an arrival and return what may start.

        Raises
        ------
        InfeasibleError
            If no replica's pool could ever hold the conversation's first turn.
        """
        self._refuse_what_nobody_holds(conversation)
        self._view[conversation.index] = timed = self._with_times(conversation)
        self._waiting_prefill[self._policy.queue(timed)].append(timed)
        return self._serve(now_s)

    def _refuse_what_nobody_holds(self, conversation: ConversationView) -> None:
        decoders = [i for i, role in enumerate(self._roles) if role != "prefill" and self._alive[i]]
        largest = max((self._kv_tokens[i] for i in decoders), default=0)
        needed = conversation.first_turn_tokens
        if needed > largest:
            raise InfeasibleError(
                f"Conversation {conversation.index} needs {needed:,} tokens of KV cache; the largest decoder holds {largest:,}. "
                "Use a larger tier or more tensor parallelism, or shorten its context."
            )

    def prefilled(self, now_s: float, conversation: int) -> list[Grant]:
        """Note the end of a prefill that a grant or `later_turn` started, and return what may start."""
        self._end_work(conversation)
        if conversation in self._decode:
            return [Grant("decode", conversation, self._decode[conversation]), *self._serve(now_s)]
        view = self._view[conversation]
        self._waiting_decode[self._policy.queue(view)].append(view)
        return self._serve(now_s)

    def later_turn(
        self,
        now_s: float,
        conversation: int,
        number: int,
        context_tokens: int,
        new_tokens: int,
        output_tokens: int,
        room: Callable[[int], int] | None = None,
    ) -> tuple[Away | None, list[Grant]]:
        """Note a later turn's arrival; return where it goes (None: it stays where its cache is) and what may start.

        A turn takes its cache only where there is room for it and for the new tokens at once: one that waited for room with
        its cache in its hands would keep others from making it.

        Parameters
        ----------
        now_s, conversation, number
            When, of which conversation, and which of its turns (the first is 0).
        context_tokens, new_tokens, output_tokens
            Tokens cached at home, tokens of the prompt that are not, and tokens it will put out (foresight).
        room
            Returns how many tokens a replica's pool has room for now; None: nobody knows, and a turn may wait for it.
        """
        away = None
        if self._policy.per_turn:
            turn = self._turn(conversation, number, context_tokens, new_tokens, output_tokens)
            away = self._policy.later_turn(turn, self.view(now_s))
        home, prompt = self._decode[conversation], context_tokens + new_tokens
        if away is None or (away.reuse and context_tokens and room is not None and prompt > room(away.prefill)):
            self.grow(conversation, prompt)
            return None, []
        if away.decode == home:
            self.grow(conversation, prompt)
        else:
            self._free(conversation)
            now = self._view[conversation]
            view = self._with_times(ConversationView(conversation, now.arrival_s, prompt, now.peak_tokens))
            self._view[conversation] = view
            if away.decode is not None:
                self._reserve(view, away.decode)
        self._begin_work(conversation, away.prefill, new_tokens if away.reuse else prompt, context_tokens if away.reuse else 0)
        return away, self._serve(now_s)

    def stayed(self, conversation: int) -> None:
        """Note that a turn which was to visit another replica is computed at home after all."""
        self._end_work(conversation)

    def settled(self, now_s: float, conversation: int, replica: int) -> list[Grant]:
        """Note that a prefilled conversation decodes where it is, wherever it was to go; return what may start, itself first."""
        view = self._view[conversation]
        if view in (waiting := self._waiting_decode[self._policy.queue(view)]):
            waiting.remove(view)
        self._free(conversation)
        self._reserve(view, replica)
        return [Grant("decode", conversation, replica), *self._serve(now_s)]

    def _turn(self, conversation: int, number: int, context: int, new: int, output: int) -> TurnView:
        home, replicas = self._decode[conversation], range(len(self._replicas))
        laws = [replica.coefficients for replica in self._replicas]
        return TurnView(
            self._view[conversation], number, home, context, new,
            tuple(self._move_s(home, i, context) for i in replicas),
            tuple(laws[i].prefill_s(new, context, self._chunk[i]) for i in replicas),
            tuple(self._move_s(i, home, new) for i in replicas),
            output,
        )  # fmt: skip

    def _move_s(self, source: int, target: int, tokens: int) -> float:
        """Return the time that a cache takes from one replica to another, alone on the link."""
        if source == target:
            return 0.0
        link = self._links.get((source, target))
        return float("inf") if link is None else link.latency_s + tokens * self._kv_bytes_per_token / link.bytes_per_s

    def grow(self, conversation: int, context_tokens: int) -> None:
        """Raise a conversation's reservation to its context (later turns never wait for KV)."""
        held = self._reservation[conversation]
        if context_tokens > held:
            self._reserved[self._decode[conversation]] += context_tokens - held
            self._reservation[conversation] = context_tokens
            self._changed(self._decode[conversation])

    def finished(self, now_s: float, conversation: int) -> list[Grant]:
        """Note the end of a conversation and return what may start."""
        self._release(conversation)
        return self._serve(now_s)

    def lost(self, now_s: float, replica: int, conversations: Sequence[ConversationView]) -> list[Grant]:
        """Note the death of a replica: place its conversations (with their contexts so far as first turns) again.

        Where nobody is left to prefill, or to decode, the survivors take both roles.
        """
        self._alive[replica] = False
        left = {role for role, alive in zip(self._roles, self._alive, strict=True) if alive}
        if left in ({"prefill"}, {"decode"}):
            self._roles = ["mixed"] * len(self._roles)
        self._seen, self._fleet = [None] * len(self._seen), None
        return self.again(now_s, conversations)

    def again(self, now_s: float, conversations: Sequence[ConversationView]) -> list[Grant]:
        """Place conversations that have lost their caches (contexts so far as first turns) again, before those that wait.

        Raises
        ------
        InfeasibleError
            If no replica that is left could ever hold one of them.
        """
        for conversation in conversations:
            self._refuse_what_nobody_holds(conversation)
        for conversation in conversations:
            self._release(conversation.index)
        for conversation in reversed(conversations):
            self._view[conversation.index] = timed = self._with_times(conversation)
            self._waiting_prefill[self._policy.queue(timed)].appendleft(timed)
        return self._serve(now_s)

    def decoder_of(self, conversation: int) -> int | None:
        """Return the decoder that a conversation is already granted, if any."""
        return self._decode.get(conversation)

    def waiting(self) -> int:
        """Return how many conversations wait for a replica."""
        return sum(len(queue) for queues in (self._waiting_prefill, self._waiting_decode) for queue in queues.values())

    def view(self, now_s: float) -> FleetView:
        """Return what is observable now; replicas that died hold nothing."""
        if self._fleet is None or self._fleet.now_s != now_s:
            seen = [view or self._look_at(index) for index, view in enumerate(self._seen)]
            self._fleet = FleetView(now_s, tuple(seen) if all(self._alive) else tuple(v for v in seen if self._alive[v.index]))
        return self._fleet

    def _look_at(self, index: int) -> ReplicaView:
        self._seen[index] = seen = ReplicaView(
            index, self._roles[index], self._kv_tokens[index], self._reserved[index],
            self._backlog_tokens[index], self._backlog_s[index], self._conversations[index], self._step_s(index),
        )  # fmt: skip
        return seen

    def _changed(self, replica: int) -> None:
        """Have a replica looked at anew."""
        self._seen[replica] = self._fleet = None

    def _release(self, conversation: int) -> None:
        if conversation not in self._decode:  # it may still be in a queue
            view = self._view.get(conversation)
            for queues in (self._waiting_prefill, self._waiting_decode):
                if view is not None and view in (waiting := queues[self._policy.queue(view)]):
                    waiting.remove(view)
        self._end_work(conversation)
        self._prefill.pop(conversation, None)
        self._free(conversation)
        self._view.pop(conversation, None)

    def _free(self, conversation: int) -> None:
        """Take back a conversation's reservation, if it has one."""
        decode = self._decode.pop(conversation, None)
        if decode is not None:
            self._reserved[decode] -= self._reservation.pop(conversation)
            self._conversations[decode] -= 1
            self._changed(decode)

    def _begin_work(self, conversation: int, replica: int, new_tokens: int, context_tokens: int) -> None:
        """Add a prefill to a replica's queue."""
        work_s = self._replicas[replica].coefficients.prefill_s(new_tokens, context_tokens, self._chunk[replica])
        self._prefill[conversation] = replica
        self._work[conversation] = (new_tokens, work_s)
        self._backlog_tokens[replica] += new_tokens
        self._backlog_s[replica] += work_s
        self._changed(replica)

    def _end_work(self, conversation: int) -> None:
        """Take a prefill that ended, or never will, from its replica's queue."""
        tokens, work_s = self._work.pop(conversation, (0, 0.0))
        if tokens:
            replica = self._prefill[conversation]
            self._backlog_tokens[replica] -= tokens
            self._backlog_s[replica] = max(0.0, self._backlog_s[replica] - work_s)
            self._changed(replica)

    def _step_s(self, replica: int) -> float:
        """Return the duration of a step that decodes all conversations of a replica; 0 if nobody would ask."""
        if not self._policy.timed:
            return 0.0
        number, reserved = max(1, self._conversations[replica]), self._reserved[replica]
        if self._step_of[replica][:2] != (number, reserved):
            step_s = float(self._replicas[replica].coefficients.step_s(number, 0.0, reserved, number))
            self._step_of[replica] = (number, reserved, step_s)
        return self._step_of[replica][2]

    def _with_times(self, conversation: ConversationView) -> ConversationView:
        """Add how long the first turn takes on each replica, and to leave it, if the policy asks."""
        if not self._policy.timed:
            return conversation
        tokens, laws = conversation.first_turn_tokens, [replica.coefficients for replica in self._replicas]
        known: dict[tuple[int, int], float] = {}
        for law, chunk in zip(laws, self._chunk, strict=True):
            if (id(law), chunk) not in known:
                known[id(law), chunk] = law.prefill_s(tokens, 0, chunk)
        size = tokens * self._kv_bytes_per_token
        return replace(
            conversation,
            prefill_s=tuple(known[id(law), chunk] for law, chunk in zip(laws, self._chunk, strict=True)),
            move_s=tuple(float("inf") if link is None else link.latency_s + size / link.bytes_per_s for link in self._fastest),
        )

    def _serve(self, now_s: float) -> list[Grant]:
        grants: list[Grant] = []
        for queue in self._waiting_decode.values():
            grants += self._serve_decodes(queue, now_s)
        for queue in self._waiting_prefill.values():
            grants += self._serve_prefills(queue, now_s)
        return grants

    def _serve_decodes(self, queue: deque[ConversationView], now_s: float) -> Iterator[Grant]:
        while queue:
            conversation = queue[0]
            decode = self._policy.decode(conversation, self.view(now_s), self._prefill[conversation.index])
            if decode is None:
                break
            queue.popleft()
            self._reserve(conversation, decode)
            yield Grant("decode", conversation.index, decode)

    def _serve_prefills(self, queue: deque[ConversationView], now_s: float) -> Iterator[Grant]:
        while queue:
            conversation = queue[0]
            route = self._policy.prefill(conversation, self.view(now_s))
            if route is None:
                break
            queue.popleft()
            self._begin_work(conversation.index, route.prefill, conversation.first_turn_tokens, 0)
            if route.decode is not None:
                self._reserve(conversation, route.decode)
            yield Grant("prefill", conversation.index, route.prefill)

    def _reserve(self, conversation: ConversationView, decode: int) -> None:
        tokens = min(self._policy.reservation(conversation), self._kv_tokens[decode])
        self._decode[conversation.index] = decode
        self._reservation[conversation.index] = tokens
        self._reserved[decode] += tokens
        self._conversations[decode] += 1
        self._changed(decode)
