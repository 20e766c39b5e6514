"""Keep the books that placement policies look at, and grant what they decide; one copy for both clocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optsched.domain.plan import PlanReplica
from optsched.errors import InfeasibleError
from optsched.placement.view import ConversationView, FleetView, PlacementPolicy, ReplicaView


@dataclass(frozen=True, slots=True)
class Grant:
    """A conversation may start its prefill on a replica, or move to (or stay on) its decoder."""

    kind: Literal["prefill", "decode"]
    conversation: int
    replica: int


class Dispatcher:
    """Ask the placement policy at arrivals, prefill ends and releases; waiting conversations are served first come, first served.

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
    """

    def __init__(
        self, policy: PlacementPolicy, replicas: Sequence[PlanReplica], block_tokens: int, max_batched_tokens: int
    ) -> None:
        self._policy = policy
        self._replicas = tuple(replicas)
        self._chunk = [replica.max_batched_tokens or max_batched_tokens for replica in replicas]
        self._kv_tokens = [replica.kv_blocks * block_tokens for replica in replicas]
        self._alive = [True] * len(replicas)
        self._reserved = [0] * len(replicas)
        self._backlog_tokens = [0] * len(replicas)
        self._backlog_s = [0.0] * len(replicas)
        self._conversations = [0] * len(replicas)
        self._waiting_prefill: deque[ConversationView] = deque()
        self._waiting_decode: deque[ConversationView] = deque()
        self._view: dict[int, ConversationView] = {}
        self._prefill: dict[int, int] = {}
        self._decode: dict[int, int] = {}
        self._reservation: dict[int, int] = {}
        self._work_s: dict[int, float] = {}

    def arrive(self, now_s: float, conversation: ConversationView) -> list[Grant]:
        """Note an arrival and return what may start.

        Raises
        ------
        InfeasibleError
            If no replica's pool could ever hold the conversation's first turn.
        """
        decoders = [i for i, replica in enumerate(self._replicas) if replica.role != "prefill" and self._alive[i]]
        largest = max((self._kv_tokens[i] for i in decoders), default=0)
        needed = conversation.first_turn_tokens
        if needed > largest:
            raise InfeasibleError(
                f"Conversation {conversation.index} needs {needed:,} tokens of KV cache; the largest decoder holds {largest:,}. "
                "Use a larger tier or more tensor parallelism, or shorten its context."
            )
        self._view[conversation.index] = conversation
        self._waiting_prefill.append(conversation)
        return self._serve(now_s)

    def prefilled(self, now_s: float, conversation: int) -> list[Grant]:
        """Note the end of a first turn's prefill and return what may start."""
        replica = self._prefill[conversation]
        self._backlog_tokens[replica] -= self._view[conversation].first_turn_tokens
        self._backlog_s[replica] = max(0.0, self._backlog_s[replica] - self._work_s.pop(conversation))
        if conversation in self._decode:
            return [Grant("decode", conversation, self._decode[conversation]), *self._serve(now_s)]
        self._waiting_decode.append(self._view[conversation])
        return self._serve(now_s)

    def grow(self, conversation: int, context_tokens: int) -> None:
        """Raise a conversation's reservation to its context (later turns never wait for KV)."""
        held = self._reservation[conversation]
        if context_tokens > held:
            self._reserved[self._decode[conversation]] += context_tokens - held
            self._reservation[conversation] = context_tokens

    def finished(self, now_s: float, conversation: int) -> list[Grant]:
        """Note the end of a conversation and return what may start."""
        self._release(conversation)
        return self._serve(now_s)

    def lost(self, now_s: float, replica: int, conversations: Sequence[ConversationView]) -> list[Grant]:
        """Note the death of a replica: place its conversations (with their contexts so far as first turns) again."""
        self._alive[replica] = False
        for conversation in conversations:
            self._release(conversation.index)
        for conversation in reversed(conversations):
            self._view[conversation.index] = conversation
            self._waiting_prefill.appendleft(conversation)
        return self._serve(now_s)

    def decoder_of(self, conversation: int) -> int | None:
        """Return the decoder that a conversation is already granted, if any."""
        return self._decode.get(conversation)

    def waiting(self) -> int:
        """Return how many conversations wait for a replica."""
        return len(self._waiting_prefill) + len(self._waiting_decode)

    def view(self, now_s: float) -> FleetView:
        """Return what is observable now; replicas that died hold nothing."""
        return FleetView(
            now_s,
            tuple(
                ReplicaView(
                    index, replica.role, self._kv_tokens[index], self._reserved[index],
                    self._backlog_tokens[index], self._backlog_s[index], self._conversations[index],
                )
                for index, replica in enumerate(self._replicas)
                if self._alive[index]
            ),
        )  # fmt: skip

    def _release(self, conversation: int) -> None:
        if conversation not in self._decode:  # it may still be in a queue
            view = self._view.get(conversation)
            for waiting in (self._waiting_prefill, self._waiting_decode):
                if view is not None and view in waiting:
                    waiting.remove(view)
        prefill, decode = self._prefill.pop(conversation, None), self._decode.pop(conversation, None)
        work_s = self._work_s.pop(conversation, None)
        if prefill is not None and work_s is not None:
            self._backlog_tokens[prefill] -= self._view[conversation].first_turn_tokens
            self._backlog_s[prefill] = max(0.0, self._backlog_s[prefill] - work_s)
        if decode is not None:
            self._reserved[decode] -= self._reservation.pop(conversation)
            self._conversations[decode] -= 1
        self._view.pop(conversation, None)

    def _serve(self, now_s: float) -> list[Grant]:
        grants: list[Grant] = []
        while self._waiting_decode:
            conversation = self._waiting_decode[0]
            decode = self._policy.decode(conversation, self.view(now_s), self._prefill[conversation.index])
            if decode is None:
                break
            self._waiting_decode.popleft()
            self._reserve(conversation, decode)
            grants.append(Grant("decode", conversation.index, decode))
        while self._waiting_prefill:
            conversation = self._waiting_prefill[0]
            route = self._policy.prefill(conversation, self.view(now_s))
            if route is None:
                break
            self._waiting_prefill.popleft()
            self._prefill[conversation.index] = route.prefill
            work_s = self._replicas[route.prefill].coefficients.prefill_s(
                conversation.first_turn_tokens, 0, self._chunk[route.prefill]
            )
            self._work_s[conversation.index] = work_s
            self._backlog_tokens[route.prefill] += conversation.first_turn_tokens
            self._backlog_s[route.prefill] += work_s
            if route.decode is not None:
                self._reserve(conversation, route.decode)
            grants.append(Grant("prefill", conversation.index, route.prefill))
        return grants

    def _reserve(self, conversation: ConversationView, decode: int) -> None:
        tokens = min(self._policy.reservation(conversation), self._kv_tokens[decode])
        self._decode[conversation.index] = decode
        self._reservation[conversation.index] = tokens
        self._reserved[decode] += tokens
        self._conversations[decode] += 1
