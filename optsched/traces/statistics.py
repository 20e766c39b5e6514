"""Describe a workload in numbers, and distil a recipe from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from optsched.domain.workload import LengthQuantiles, Recipe, TurnRecipe, Workload
from optsched.errors import SpecError

Array = np.ndarray
# Dense where token counts have long tails: between two points a recipe is linear, which puts the mean of a convex tail too high.
QUANTILES = (
    0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999, 1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of a quantity."""

    mean: float
    p5: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Num[Array, " N"]) -> Spread | None:
        """Return the spread of some values, None of none."""
        if not len(values):
            return None
        p5, p50, p95, p99 = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95, 0.99)))
        return cls(float(np.mean(values)), p5, p50, p95, p99, float(np.max(values)))


@dataclass(frozen=True, slots=True)
class WorkloadStatistics:
    """A workload in numbers.

    Attributes
    ----------
    conversations, turns
        How many.
    prompt_tokens, output_tokens, context_tokens
        Totals: appended, generated, and both with the whole context of every turn counted again.
    turns_per_conversation, first_turn_tokens, later_turn_tokens, output_tokens_per_turn, peak_tokens, gap_s
        Spreads; of later turns only where there are any.
    arrivals_known
        Whether the source has arrival times; the next three are None without.
    span_s, rate_per_s, gap_cv
        First to last arrival, arrivals per second in between, and the coefficient of variation of their gaps.
    prefix_blocks, repeated_prefix_blocks
        Shared-prefix blocks in all, and those that occurred before in the trace; None where unknown.
    """

    conversations: int
    turns: int
    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    turns_per_conversation: Spread | None
    first_turn_tokens: Spread | None
    later_turn_tokens: Spread | None
    output_tokens_per_turn: Spread | None
    peak_tokens: Spread | None
    gap_s: Spread | None
    arrivals_known: bool
    span_s: float | None
    rate_per_s: float | None
    gap_cv: float | None
    prefix_blocks: int | None
    repeated_prefix_blocks: int | None


def statistics(workload: Workload) -> WorkloadStatistics:
    """Return a workload's numbers."""
    later = workload.turn_in_conversation > 0
    waits = np.diff(workload.arrival_s)
    span = float(waits.sum()) if workload.arrivals_known else None
    blocks = workload.prefix_blocks
    return WorkloadStatistics(
        conversations=workload.num_conversations,
        turns=workload.num_turns,
        prompt_tokens=int(workload.new_tokens.sum()),
        output_tokens=int(workload.output_tokens.sum()),
        context_tokens=int((workload.context_before + workload.new_tokens + workload.output_tokens).sum()),
        turns_per_conversation=Spread.of(np.diff(workload.first_turn)),
        first_turn_tokens=Spread.of(workload.first_turn_tokens),
        later_turn_tokens=Spread.of(workload.new_tokens[later]),
        output_tokens_per_turn=Spread.of(workload.output_tokens),
        peak_tokens=Spread.of(workload.peak_tokens),
        gap_s=Spread.of(workload.gap_s[later]),
        arrivals_known=workload.arrivals_known,
        span_s=span,
        rate_per_s=len(waits) / span if span else None,
        gap_cv=float(waits.std() / waits.mean()) if span else None,
        prefix_blocks=None if blocks is None else len(blocks),
        repeated_prefix_blocks=None if blocks is None else len(blocks) - len(np.unique(blocks)),
    )


def distil(workload: Workload, name: str, title: str, origin: str, quantiles: Sequence[float] = QUANTILES) -> Recipe:
    """Return the recipe with a workload's length quantiles, turn by turn.

    Lengths of one conversation are related in most traces; a recipe keeps each turn's distribution and not that relation.

    Parameters
    ----------
    workload
        The conversations.
    name, title, origin
        What the recipe is called and where its numbers come from.
    quantiles
        Probabilities from 0 to 1, increasing.

    Raises
    ------
    SpecError
        If the probabilities do not run from 0 to 1.
    """
    points = np.asarray(quantiles, float)
    if len(points) < 2 or points[0] != 0 or points[-1] != 1 or not (np.diff(points) > 0).all():
        raise SpecError("must increase from 0 to 1, for example 0,0.5,1", field="quantiles")

    def lengths(values: Num[Array, " N"], digits: int) -> LengthQuantiles:
        pairs = zip(points, np.quantile(values, points), strict=True)
        return LengthQuantiles(quantiles=tuple((float(p), round(float(value), digits)) for p, value in pairs))

    sizes = np.diff(workload.first_turn)
    turns = []
    for index in range(int(sizes.max())):
        of_turn = workload.turn_in_conversation == index
        gaps = workload.gap_s[of_turn]
        turns.append(
            TurnRecipe(
                new_tokens=lengths(workload.new_tokens[of_turn], 1),
                output_tokens=lengths(workload.output_tokens[of_turn], 1),
                gap_s=lengths(gaps, 6) if gaps.any() else None,
            )
        )
    counts = np.bincount(sizes)[1:]
    weights = None if len(np.unique(sizes)) == 1 else tuple(float(count) for count in counts)
    return Recipe(name=name, title=title, origin=origin, turns=tuple(turns), num_turns_weights=weights)


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as the text of its TOML file."""

    def text(value: str) -> str:
        # A JSON string is a TOML basic string, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    def number(value: float) -> str:
        return str(int(value)) if value.is_integer() else repr(value)

    def lengths(value: LengthQuantiles) -> str:
        return "{ quantiles = [" + ", ".join(f"[{number(p)}, {number(length)}]" for p, length in value.quantiles) + "] }"

    parts = ['schema = "optsched/workload"', "version = 1"]
    parts += [f"{key} = {text(getattr(recipe, key))}" for key in ("name", "title", "origin")]
    if recipe.num_turns_weights is not None:
        parts.append(f"num_turns_weights = [{', '.join(map(number, recipe.num_turns_weights))}]")
    for turn in recipe.turns:
        parts += ["", "[[turn]]", f"new_tokens = {lengths(turn.new_tokens)}", f"output_tokens = {lengths(turn.output_tokens)}"]
        if turn.gap_s is not None:
            parts.append(f"gap_s = {lengths(turn.gap_s)}")
    return "\n".join(parts) + "\n"
