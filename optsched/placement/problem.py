"""The offline placement problem: conversations, replicas, links; and a placement of every conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo
from optsched.domain.results import StandaloneLatency
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload
from optsched.errors import ProblemError

Array = np.ndarray
Goal = Literal["energy", "ttfet", "slo_misses", "cost"]
GOALS: dict[Goal, str] = {
    "energy": "energy of the whole run [J]",
    "ttfet": "95th percentile of TTFET [s]",
    "slo_misses": "conversations that miss a latency target [conversations]",
    "cost": "price of the fleet over the run [USD]",
}
PERCENTILE = 0.95


def percentile_rank(conversations: int) -> int:
    """Return k so that the 95th percentile is the k-th smallest (from 1): ``ceil(0.95 n)``, without interpolation."""
    return int(np.ceil(PERCENTILE * conversations - 1e-9))


@dataclass(frozen=True)
class PlacementProblem:
    """Who prefills and who decodes each of C conversations on R replicas of one llm.

    Attributes
    ----------
    workload
        The conversations: arrivals, lengths and gaps, all known.
    replicas, links
        As in a plan; a conversation may move only along a link.
    kv_bytes_per_token
        Bytes of KV cache that a transfer moves per token.
    objective
        What is minimised, see `GOALS`.
    block_tokens, max_batched_tokens
        Tokens per KV block, and chunk of a prefill where the replica does not name its own.
    slo
        The latency targets that ``slo_misses`` counts.
    """

    workload: Workload
    replicas: tuple[PlanReplica, ...]
    links: tuple[PlanLink, ...]
    kv_bytes_per_token: float
    objective: Goal = "ttfet"
    block_tokens: int = 16
    max_batched_tokens: int = 2048
    slo: PlanSlo | None = None

    def __post_init__(self) -> None:
        """Refuse data that contradict each other, and conversations that no pair of replicas can hold.

        Raises
        ------
        ProblemError
            If there is no placement at all, or a number is out of range.
        """
        if self.objective not in GOALS:
            raise ProblemError(f"objective {self.objective!r} is unknown; choose one of {', '.join(GOALS)}")
        if self.block_tokens < 1 or self.max_batched_tokens < 1 or not self.kv_bytes_per_token >= 0:
            raise ProblemError("block_tokens and max_batched_tokens must be at least 1, kv_bytes_per_token at least 0")
        if not self.replicas or not self.workload.num_conversations:
            raise ProblemError("a placement problem needs at least one replica and one conversation")
        if self.objective == "slo_misses" and self.slo is None:
            raise ProblemError("objective 'slo_misses' needs latency targets; give slo")
        ids = [replica.id for replica in self.replicas]
        if len(set(ids)) != len(ids):
            raise ProblemError("replica ids must differ; rename one of those that are equal")
        if len({replica.llm for replica in self.replicas}) > 1:
            raise ProblemError("the replicas serve several llms; solve one problem per llm")
        unknown = [end for link in self.links for end in (link.source, link.target) if end not in ids]
        if unknown:
            raise ProblemError(f"a link names replica {unknown[0]!r}, which does not exist; there are {', '.join(ids)}")
        stranded = np.flatnonzero(~self._placeable)
        if len(stranded):
            peak = int(self.workload.peak_tokens[stranded[0]])
            raise ProblemError(
                f"conversation {stranded[0]} ({peak:,} tokens at its end) fits on no pair of a prefill and a decode replica "
                "that a link joins; use larger pools, add a link or a mixed replica, or shorten its context"
            )

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Tokens of a prefill chunk on each replica."""
        return tuple(replica.max_batched_tokens or self.max_batched_tokens for replica in self.replicas)

    @cached_property
    def blocks(self) -> Int64[Array, " C"]:
        """KV blocks that each conversation reserves on its decoder: those of its context at its end."""
        return np.asarray(-(-self.workload.peak_tokens // self.block_tokens))

    @cached_property
    def first_blocks(self) -> Int64[Array, " C"]:
        """KV blocks of each conversation's first prompt."""
        return np.asarray(-(-self.workload.first_turn_tokens // self.block_tokens))

    @cached_property
    def kv_blocks(self) -> Int64[Array, " R"]:
        """KV blocks of each replica's pool."""
        return np.array([replica.kv_blocks for replica in self.replicas], dtype=np.int64)

    @cached_property
    def link_of(self) -> dict[tuple[int, int], PlanLink]:
        """The link from one replica to another, by their indices; of several the quickest for a mean first turn."""
        index = {replica.id: i for i, replica in enumerate(self.replicas)}
        volume = self.kv_bytes_per_token * float(self.workload.first_turn_tokens.mean())
        found: dict[tuple[int, int], PlanLink] = {}
        for link in self.links:
            ends = index[link.source], index[link.target]
            if ends not in found or _seconds(link, volume) < _seconds(found[ends], volume):
                found[ends] = link
        return found

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (prefill, decode) that roles and links allow."""
        roles = [replica.role for replica in self.replicas]
        prefill = [i for i, role in enumerate(roles) if role != "decode"]
        decode = [i for i, role in enumerate(roles) if role != "prefill"]
        return tuple((p, d) for p in prefill for d in decode if p == d or (p, d) in self.link_of)

    def fits(self, prefill: int, decode: int) -> Bool[Array, " C"]:
        """Tell which conversations the pools of a pair hold, each alone."""
        tail = self.blocks <= self.kv_blocks[decode]
        return np.asarray(tail if prefill == decode else tail & (self.first_blocks <= self.kv_blocks[prefill]))

    @cached_property
    def _ends(self) -> Int64[Array, "Q 2"]:
        return np.array(self.pairs, dtype=np.int64).reshape(-1, 2)

    def options(self, conversation: int) -> list[tuple[int, int]]:
        """Return the pairs that may hold one conversation."""
        p, d = self._ends[:, 0], self._ends[:, 1]
        fits = self.blocks[conversation] <= self.kv_blocks[d]
        fits &= (p == d) | (self.first_blocks[conversation] <= self.kv_blocks[p])
        return [self.pairs[q] for q in np.flatnonzero(fits)]

    @cached_property
    def _placeable(self) -> Bool[Array, " C"]:
        found = np.zeros(self.workload.num_conversations, bool)
        for prefill, decode in self.pairs:
            found |= self.fits(prefill, decode)
        return found

    @cached_property
    def standalone(self) -> StandaloneLatency | None:
        """Latency of each conversation alone on the reference tier of the SLO; None without one."""
        if self.slo is None:
            return None
        reference = self.slo.standalone
        return standalone_latency(self.workload, reference.coefficients, reference.max_batched_tokens)

    @cached_property
    def idle_w(self) -> float:
        """Idle power of all replicas together."""
        return sum(replica.coefficients.idle_w for replica in self.replicas)

    @cached_property
    def usd_per_hour(self) -> float:
        """Price of all replicas together."""
        return sum(replica.usd_per_hour for replica in self.replicas)

    def with_objective(self, objective: Goal) -> PlacementProblem:
        """Return the same problem with another objective."""
        return replace(self, objective=objective)

    def with_free_roles(self) -> PlacementProblem:
        """Return the problem in which every replica may do everything: its bound holds for any choice of roles."""
        return replace(self, replicas=tuple(replica.replace(role="mixed") for replica in self.replicas))


def _seconds(link: PlanLink, volume_bytes: float) -> float:
    return link.latency_s + volume_bytes / link.bytes_per_s


@dataclass(frozen=True)
class PlacementPlan:
    """One prefill replica and one decode replica for every conversation; where they differ its cache moves once.

    Attributes
    ----------
    prefill, decode
        Indices into the problem's replicas.
    """

    prefill: Int64[Array, " C"]
    decode: Int64[Array, " C"]

    @classmethod
    def of(cls, prefill: Sequence[int] | Int64[Array, " C"], decode: Sequence[int] | Int64[Array, " C"]) -> PlacementPlan:
        """Build a plan from any sequences of indices."""
        return cls(np.array(prefill, dtype=np.int64), np.array(decode, dtype=np.int64))

    def violations(self, problem: PlacementProblem) -> list[str]:
        """List every rule that the plan breaks, in plain sentences; an empty list means that it can be executed."""
        from optsched.placement.referee import violations

        return violations(self, problem)


def percentile_95(values: Float64[Array, " C"]) -> float:
    """Return the 95th percentile of values as this layer defines it: the ``ceil(0.95 n)``-th smallest."""
    return float(np.partition(values, percentile_rank(len(values)) - 1)[percentile_rank(len(values)) - 1])
