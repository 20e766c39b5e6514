"""What one replica of a type sustains: the columns of the fleet problem.

A replica at batch B computes, per conversation, its prompts (``p`` seconds) and B-th parts of the steps that decode its O tokens
(``t(B)`` each). So it sustains ``1 / (p + O t(B) / B)`` conversations per second, and a token takes ``t(B) + p B / O``: its own
step and the prompts that come between (Little's law, with every second spent on either). The operating batch is the largest
whose token time keeps the target and whose contexts fit the pool: the rate rises with B, and so does the token time.
Prefill replicas compute first turns only, decode replicas the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.capacity.classes import LengthClass
from optsched.domain.plan import PlanReplica
from optsched.domain.step_law import StepLaw

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Targets:
    """Latency targets in seconds that a column is held to; None: none.

    Attributes
    ----------
    first_token_s
        Of the first turn, without any wait.
    token_s
        Between tokens, on average.
    """

    first_token_s: float | None = None
    token_s: float | None = None


@dataclass(frozen=True, eq=False)
class Columns:
    """What each of A replica types sustains of each of J classes.

    Attributes
    ----------
    replicas
        One replica of each type.
    rate_per_s
        Conversations per second; 0 where a target or the pool forbids the class.
    batch
        The operating batch; 0 for prefill replicas.
    joules
        Energy above idle per conversation.
    first_token_s, token_s
        Time of the first turn's prompt alone, and between tokens at the operating batch; 0 where the type does not compute them.
    reason
        Why a class is not served; empty where it is.
    """

    replicas: tuple[PlanReplica, ...]
    rate_per_s: Float64[Array, "A J"]
    batch: Int64[Array, "A J"]
    joules: Float64[Array, "A J"]
    first_token_s: Float64[Array, "A J"]
    token_s: Float64[Array, "A J"]
    reason: tuple[tuple[str, ...], ...]

    def of(self, types: Sequence[int]) -> Columns:
        """Return some of the types."""
        return Columns(
            tuple(self.replicas[a] for a in types), self.rate_per_s[types], self.batch[types], self.joules[types],
            self.first_token_s[types], self.token_s[types], tuple(self.reason[a] for a in types),
        )  # fmt: skip


def evaluate_columns(
    replicas: Sequence[PlanReplica], classes: Sequence[LengthClass], targets: Targets, *,
    block_tokens: int, max_batched_tokens: int, max_sequences: int,
) -> Columns:  # fmt: skip
    """Evaluate every type on every class, all classes and batches of a type at once.

    Parameters
    ----------
    replicas
        One of each type.
    classes
        What there is to serve.
    targets
        What it is held to.
    block_tokens, max_batched_tokens, max_sequences
        The engine: pool blocks, the longest chunk of a prompt, and the largest batch.
    """
    sizes = _Sizes.of(classes)
    shape = (len(replicas), len(classes))
    rate, joules, batch = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    first_s, token_s = np.zeros(shape), np.zeros(shape)
    reasons: list[tuple[str, ...]] = []
    for a, replica in enumerate(replicas):
        row = _Row(replica, sizes, targets, replica.kv_blocks * block_tokens, replica.max_batched_tokens or max_batched_tokens)
        served = row.reason == ""
        first_s[a], joules[a] = row.first_s, row.first_j
        if replica.role == "prefill":
            rate[a] = 1 / row.first_s
        else:
            rate[a], batch[a], joules[a], token_s[a] = row.decode(max_sequences)
            served = row.reason == ""
        for figures in (rate, batch, joules, first_s, token_s):
            figures[a] *= served
        reasons.append(tuple(str(why) for why in row.reason))
    return Columns(tuple(replicas), rate, batch, joules, first_s, token_s, tuple(reasons))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The figures of J classes as arrays; see `LengthClass`."""

    first_turn_tokens: Float64[Array, " J"]
    appended_tokens: Float64[Array, " J"]
    output_tokens: Float64[Array, " J"]
    later_turns: Float64[Array, " J"]
    gap_s: Float64[Array, " J"]
    pairs: Float64[Array, " J"]
    appended_context: Float64[Array, " J"]
    decode_context: Float64[Array, " J"]
    peak_tokens: Float64[Array, " J"]

    @classmethod
    def of(cls, classes: Sequence[LengthClass]) -> _Sizes:
        return cls(*(np.array([getattr(each, name) for each in classes], float) for name in cls.__slots__))


class _Row:
    """One replica type before all classes."""

    def __init__(self, replica: PlanReplica, sizes: _Sizes, targets: Targets, pool: int, chunk: int) -> None:
        self.replica, self.sizes, self.targets, self.pool = replica, sizes, targets, pool
        self.law: StepLaw = replica.coefficients
        self.reason = np.full(len(sizes.peak_tokens), "", dtype=object)
        self.first_s, self.first_j = _first_turns(self.law, sizes.first_turn_tokens, chunk)
        self._refuse(sizes.peak_tokens > pool, lambda j: (
            f"its context of {sizes.peak_tokens[j]:,.0f} tokens exceeds the pool of {pool:,}"
        ))  # fmt: skip
        if replica.role == "decode":
            self.first_s, self.first_j = np.zeros_like(self.first_s), np.zeros_like(self.first_j)
        elif targets.first_token_s is not None:
            due_s = targets.first_token_s
            self._refuse(self.first_s > due_s, lambda j: (
                f"its prompt alone takes {self.first_s[j]:.3g} s, the first token is due in {due_s:.3g} s"
            ))  # fmt: skip

    def _refuse(self, classes: Bool[Array, " J"], say: Callable[[int], str]) -> None:
        for j in np.flatnonzero(classes & (self.reason == "")).tolist():
            self.reason[j] = say(j)

    def decode(
        self, max_sequences: int
    ) -> tuple[Float64[Array, " J"], Int64[Array, " J"], Float64[Array, " J"], Float64[Array, " J"]]:
        """Return rate, operating batch, joules and token time of each class; those that none of keeps are given a reason."""
        sizes, law = self.sizes, self.law
        room = self.pool / sizes.peak_tokens[:, None]
        largest = np.minimum(max_sequences, np.floor(room))
        batches = np.arange(1, max(1, int(largest.max())) + 1, dtype=float)[None, :]
        outputs, context = sizes.output_tokens[:, None], sizes.decode_context[:, None]
        step_s = law.step_s(batches, 0.0, batches * context, batches)
        prompts_s, prompts_j = self._prompts(batches)
        token_s = step_s + prompts_s * batches / outputs
        rate = 1 / (prompts_s + outputs * step_s / batches)
        # A conversation between its turns keeps its cache: the pool holds the batch and those who pause.
        fits = (batches <= largest) & (batches + rate * sizes.gap_s[:, None] <= np.maximum(1.0, room))
        in_time = token_s <= (np.inf if self.targets.token_s is None else self.targets.token_s)
        allowed = fits & in_time
        due_s = self.targets.token_s or 0.0
        self._refuse(~allowed.any(axis=1) & ~in_time[:, 0], lambda j: (
            f"a token takes {token_s[j, 0]:.3g} s even alone, it is due in {due_s:.3g} s"
        ))  # fmt: skip
        self._refuse(~allowed.any(axis=1), lambda j: (
            f"conversations that pause for {sizes.gap_s[j]:.3g} s fill the pool of {self.pool:,} tokens"
        ))  # fmt: skip
        best = np.where(allowed.any(axis=1), allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1), 0)
        rows = np.arange(len(best))
        size = batches[0, best]
        step_j = law.energy_j(size, 0.0, size * sizes.decode_context, size)
        used_j = prompts_j[rows, best] + sizes.output_tokens * step_j / size
        return rate[rows, best], (best + 1).astype(np.int64), used_j, token_s[rows, best]

    def _prompts(self, batches: Float64[Array, "1 B"]) -> tuple[Float64[Array, "J B"], Float64[Array, "J B"]]:
        """Return time and energy of a conversation's prompts: those of later turns ride on steps that decode a batch."""
        law, sizes = self.law, self.sizes
        turns = sizes.later_turns[:, None]
        new = np.divide(sizes.appended_tokens, sizes.later_turns, out=np.zeros_like(sizes.gap_s), where=sizes.later_turns > 0)
        added_s = (law.gemm(batches + new[:, None]) - law.gemm(batches)) * turns
        added_j = (law.gemm_energy(batches + new[:, None]) - law.gemm_energy(batches)) * turns
        same_s = self.first_s + law.pair_s * sizes.pairs + law.prefill_context_s * sizes.appended_context
        same_j = self.first_j + law.pair_j * sizes.pairs + law.prefill_context_j * sizes.appended_context
        return added_s + same_s[:, None], added_j + same_j[:, None]


def _first_turns(law: StepLaw, tokens: Float64[Array, " J"], chunk: int) -> tuple[Float64[Array, " J"], Float64[Array, " J"]]:
    """Return time and energy of the first turns' prompts, each computed alone and in chunks."""
    starts = np.arange(0.0, float(tokens.max(initial=0.0)), chunk)[None, :]
    sizes = np.clip(tokens[:, None] - starts, 0.0, chunk)
    pairs = sizes * (starts + sizes / 2)
    used_s = law.step_s(sizes, pairs, prefill_context_tokens=starts) * (sizes > 0)
    used_j = law.energy_j(sizes, pairs, prefill_context_tokens=starts) * (sizes > 0)
    return used_s.sum(axis=1), used_j.sum(axis=1)


def dominated(columns: Columns, cost: Float64[Array, " A"], uses: Float64[Array, "A K"]) -> list[int | None]:
    """Return per type another of the same role that is never worse: no dearer, no larger, and as fast on every class; or None."""
    rates, joules = columns.rate_per_s, columns.joules
    kind = np.array([f"{replica.role} {replica.llm}" for replica in columns.replicas])
    stays = np.ones(len(kind), bool)
    found: list[int | None] = [None] * len(kind)
    for a in range(len(kind)):
        served = rates[a] > 0
        better = (
            stays & (kind == kind[a]) & (cost <= cost[a]) & np.all(uses <= uses[a], axis=1)
            & np.all(rates >= rates[a], axis=1) & np.all(joules[:, served] <= joules[a, served], axis=1)
        )  # fmt: skip
        better[a] = False
        if better.any():
            found[a], stays[a] = int(np.argmax(better)), False
    return found
