"""Conversations of turns with arrival times, as one struct of arrays; and the recipes that synthesise them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import Field, model_validator

from optsched.domain.frozen import Frozen
from optsched.errors import SpecError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Workload:
    """C conversations of T turns in all; turn arrays are grouped by conversation, in order.

    Attributes
    ----------
    conversation_id
        Identifier of each conversation in its source.
    arrival_s
        Arrival of each conversation's first turn, non-decreasing.
    first_turn
        Index of each conversation's first turn in the turn arrays, and T at the end.
    new_tokens
        Tokens that each turn appends to the context.
    output_tokens
        Tokens that each turn generates.
    gap_s
        Time between the end of the previous turn and the arrival of this one (0 for first turns).
    prefix_offset, prefix_blocks
        Optional shared-prefix blocks of each turn: ``prefix_blocks[prefix_offset[t]:prefix_offset[t + 1]]``.
    arrivals_known
        Whether `arrival_s` are times of the source; False: it records none, all are 0, and only a scenario's arrival
        process makes a schedule of them.
    concurrency
        Conversations in flight in a closed loop: so many arrive at first, and each end brings the next one; None: `arrival_s`
        is the schedule.
    prefix_block_tokens
        Tokens of a shared-prefix block.
    """

    conversation_id: Int64[Array, " C"]
    arrival_s: Float64[Array, " C"]
    first_turn: Int64[Array, " C+1"]
    new_tokens: Int64[Array, " T"]
    output_tokens: Int64[Array, " T"]
    gap_s: Float64[Array, " T"]
    prefix_offset: Int64[Array, " T+1"] | None = None
    prefix_blocks: Int64[Array, " K"] | None = None
    arrivals_known: bool = True
    concurrency: int | None = None
    prefix_block_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse arrays that contradict each other.

        Raises
        ------
        SpecError
            If lengths differ, a conversation has no turn, or a count or time is out of range.
        """
        c, t = len(self.conversation_id), len(self.new_tokens)
        if len(self.arrival_s) != c or len(self.first_turn) != c + 1 or self.first_turn[0] != 0 or self.first_turn[-1] != t:
            raise SpecError(f"a workload of {c} conversations and {t} turns has arrays of other lengths")
        if len(self.output_tokens) != t or len(self.gap_s) != t:
            raise SpecError(f"a workload of {t} turns has turn arrays of other lengths")
        if c and np.diff(self.first_turn).min() < 1:
            raise SpecError("every conversation needs at least one turn")
        if t and self.new_tokens[self.first_turn[:-1]].min() < 1:
            raise SpecError("a first turn needs at least one prompt token")
        if t and (self.new_tokens.min() < 0 or self.output_tokens.min() < 1):
            raise SpecError("every turn needs at least one output token and no negative prompt length")
        if not (np.isfinite(self.arrival_s).all() and np.isfinite(self.gap_s).all()) or (t and self.gap_s.min() < 0):
            raise SpecError("arrival times must be finite, and gaps finite and not negative")
        if c and (self.arrival_s[0] < 0 or np.diff(self.arrival_s).min(initial=0.0) < 0):
            raise SpecError("arrivals must be non-negative and sorted")
        if c and not self.arrivals_known and self.arrival_s[-1] > 0:
            raise SpecError("arrivals that are not known must all be 0")
        if t and self.gap_s[self.first_turn[:-1]].max() > 0:
            raise SpecError("the gap before a first turn must be 0; when it comes is the conversation's arrival")
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        offset, blocks = self.prefix_offset, self.prefix_blocks
        if offset is None and blocks is None:
            return
        if offset is None or blocks is None:
            raise SpecError("prefix_offset and prefix_blocks go together; give both or neither")
        if len(offset) != self.num_turns + 1 or offset[0] != 0 or offset[-1] != len(blocks) or np.any(np.diff(offset) < 0):
            raise SpecError(f"prefix_offset must divide {len(blocks)} blocks among {self.num_turns} turns")

    def __eq__(self, other: object) -> bool:
        """Whether two workloads hold the same arrays."""
        if not isinstance(other, Workload):
            return NotImplemented
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all((mine is None) == (theirs is None) and np.array_equal(mine, theirs) for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    @property
    def num_conversations(self) -> int:
        """Number of conversations, C."""
        return len(self.conversation_id)

    @property
    def num_turns(self) -> int:
        """Number of turns, T."""
        return len(self.new_tokens)

    @cached_property
    def conversation_of_turn(self) -> Int64[Array, " T"]:
        """Index of the conversation that each turn belongs to."""
        return np.asarray(np.repeat(np.arange(self.num_conversations), np.diff(self.first_turn)))

    @cached_property
    def turn_in_conversation(self) -> Int64[Array, " T"]:
        """0 for first turns, 1 for second ones, and so on."""
        return np.asarray(np.arange(self.num_turns) - self.first_turn[self.conversation_of_turn])

    @cached_property
    def context_before(self) -> Int64[Array, " T"]:
        """Tokens of a conversation before each turn's new tokens: earlier prompts and outputs."""
        total = np.cumsum(self.new_tokens + self.output_tokens)
        before = total - self.new_tokens - self.output_tokens
        return np.asarray(before - before[self.first_turn[:-1]][self.conversation_of_turn])

    @cached_property
    def first_turn_tokens(self) -> Int64[Array, " C"]:
        """Prompt tokens of each conversation's first turn."""
        return np.asarray(self.new_tokens[self.first_turn[:-1]])

    @cached_property
    def peak_tokens(self) -> Int64[Array, " C"]:
        """Tokens of each conversation at its end: all prompts and outputs."""
        ends = self.first_turn[1:] - 1
        return np.asarray(self.context_before[ends] + self.new_tokens[ends] + self.output_tokens[ends])

    def turns(self, conversation: int) -> range:
        """Return the turn indices of one conversation."""
        return range(int(self.first_turn[conversation]), int(self.first_turn[conversation + 1]))

    def __iter__(self) -> Iterator[range]:
        """Iterate over the conversations' turn ranges."""
        return (self.turns(c) for c in range(self.num_conversations))

    def head(self, conversations: int | None = None, turns: int | None = None) -> Workload:
        """Return the first conversations, each cut to its first turns."""
        count = self.num_conversations if conversations is None else min(conversations, self.num_conversations)
        keep = self.conversation_of_turn < count
        if turns is not None:
            keep &= self.turn_in_conversation < turns
        sizes = np.bincount(self.conversation_of_turn[keep], minlength=count)
        prefix_offset, prefix_blocks = None, None
        if self.prefix_offset is not None and self.prefix_blocks is not None:
            lengths = np.diff(self.prefix_offset)
            prefix_offset = np.concatenate([[0], np.cumsum(lengths[keep])])
            prefix_blocks = self.prefix_blocks[np.repeat(keep, lengths)]
        return Workload(
            conversation_id=self.conversation_id[:count],
            arrival_s=self.arrival_s[:count],
            first_turn=np.concatenate([[0], np.cumsum(sizes)]),
            new_tokens=self.new_tokens[keep],
            output_tokens=self.output_tokens[keep],
            gap_s=self.gap_s[keep],
            prefix_offset=prefix_offset,
            prefix_blocks=prefix_blocks,
            arrivals_known=self.arrivals_known,
            concurrency=self.concurrency,
            prefix_block_tokens=self.prefix_block_tokens,
        )

    def with_arrivals(self, arrival_s: Float64[Array, " C"], concurrency: int | None = None) -> Workload:
        """Return the same conversations, in the same order, at other arrival times, or so many in flight in a closed loop."""
        return replace(self, arrival_s=np.asarray(arrival_s, float), arrivals_known=True, concurrency=concurrency)


class LengthQuantiles(Frozen):
    """A distribution of lengths by its quantile function, linear between the points given."""

    quantiles: tuple[tuple[float, float], ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _is_a_quantile_function(self) -> Self:
        probability, value = zip(*self.quantiles, strict=True)
        if probability[0] != 0 or probability[-1] != 1 or np.any(np.diff(probability) <= 0):
            raise ValueError("quantiles must run from probability 0 to 1, strictly increasing")
        if value[0] < 0 or np.any(np.diff(value) < 0):
            raise ValueError("quantile values must be non-negative and must not decrease")
        return self


class TurnRecipe(Frozen):
    """Length distributions of one turn, and the gap before it."""

    new_tokens: LengthQuantiles
    output_tokens: LengthQuantiles
    gap_s: LengthQuantiles | None = None


class Recipe(Frozen):
    """A synthetic workload: length quantiles per turn; one turn entry per turn of the conversation.

    Attributes
    ----------
    num_turns_weights
        Relative frequency of conversations with 1, 2, ... turns; absent: all have as many turns as there are entries.
    """

    name: str
    title: str
    origin: str
    turns: tuple[TurnRecipe, ...] = Field(alias="turn", min_length=1)
    num_turns_weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _no_gap_before_the_first_turn(self) -> Self:
        if self.turns[0].gap_s is not None:
            raise ValueError("the first turn has no gap before it; remove gap_s from the first [[turn]]")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        weights = self.num_turns_weights
        if weights is not None and (len(weights) != len(self.turns) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"num_turns_weights needs {len(self.turns)} non-negative entries, not all zero")
        return self


class Arrivals(Frozen):
    """When conversations arrive.

    Attributes
    ----------
    process
        ``poisson``, ``gamma`` (with `cv`, the coefficient of variation of the gaps), ``uniform`` (constant gaps),
        ``burst`` (all at time 0), ``closed`` (with `concurrency`, the number in flight: each end brings the next one), or
        ``trace`` (the times in the trace; `rate_per_s`, if given, rescales them).
    rate_per_s
        Mean number of conversations that arrive per second.
    """

    process: Literal["poisson", "gamma", "uniform", "burst", "closed", "trace"] = "poisson"
    rate_per_s: float | None = Field(default=None, gt=0)
    cv: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    concurrency: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _rate_given(self) -> Self:
        if self.process in ("poisson", "gamma", "uniform") and self.rate_per_s is None:
            raise ValueError(f"process {self.process!r} needs rate_per_s; add it, or use process 'burst' or 'trace'")
        if (self.process == "closed") != (self.concurrency is not None):
            raise ValueError("process 'closed' and concurrency go together; give both, or neither")
        if self.process == "closed" and self.rate_per_s is not None:
            raise ValueError(
                "process 'closed' has no rate_per_s: each end brings the next arrival; remove it, or change concurrency"
            )
        if self.process == "burst" and self.rate_per_s is not None:
            raise ValueError("process 'burst' has no rate_per_s: all arrive at time 0; remove it, or use process 'poisson'")
        return self
