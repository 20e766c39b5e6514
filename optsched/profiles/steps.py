"""Durations and powers of whole steps and whole runs, as other people measured them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

Kind = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class StepRows:
    """Steps of a replica, all sequences of a step alike.

    Attributes
    ----------
    kind
        ``prefill`` of whole prompts, or ``decode`` of one token per sequence.
    llm, gpu, engine
        Names; the engine is the serving software whose overheads the times include.
    tp
        GPUs of the replica.
    sequences
        Sequences in the step.
    new_tokens, context_tokens
        Of each sequence: tokens computed, and tokens cached before them.
    seconds
        Duration.
    source
        Where the rows were published.
    left_out
        Rows of the file that are not here, by the reason.
    """

    kind: Shaped[np.ndarray, " N"]
    llm: Shaped[np.ndarray, " N"]
    gpu: Shaped[np.ndarray, " N"]
    engine: Shaped[np.ndarray, " N"]
    tp: Int64[np.ndarray, " N"]
    sequences: Float64[np.ndarray, " N"]
    new_tokens: Float64[np.ndarray, " N"]
    context_tokens: Float64[np.ndarray, " N"]
    seconds: Float64[np.ndarray, " N"]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.seconds)

    def where(self, chosen: Bool[np.ndarray, " N"]) -> StepRows:
        """Return the chosen steps."""
        columns = {name: getattr(self, name)[chosen] for name in STEP_COLUMNS}
        return StepRows(**columns, source=self.source, left_out=self.left_out)

    def keys(self) -> list[str]:
        """Return a text per step that names its shape and no gpu, llm or time: the same shape has the same key anywhere."""
        columns = (self.kind, self.tp, self.sequences, self.new_tokens, self.context_tokens)
        return [f"{kind} tp{tp:d} b{b:g} n{n:g} c{c:g}" for kind, tp, b, n, c in zip(*columns, strict=True)]


def joined_steps(first: StepRows, second: StepRows) -> StepRows:
    """Return the steps of both, their sources named and their counts of rows left out added."""
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in STEP_COLUMNS}
    reasons = {**first.left_out, **second.left_out}
    left_out = {reason: first.left_out.get(reason, 0) + second.left_out.get(reason, 0) for reason in reasons}
    return StepRows(**columns, source="; ".join(dict.fromkeys((first.source, second.source))), left_out=left_out)


STEP_COLUMNS = ("kind", "llm", "gpu", "engine", "tp", "sequences", "new_tokens", "context_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class RunRows:
    """Runs of one batch from prompt to last token, with the power that one GPU drew on average.

    Attributes
    ----------
    llm, gpu, engine, tp, sequences
        As in `StepRows`.
    prompt_tokens, output_tokens
        Of each sequence.
    seconds, prefill_s
        Whole run, and its prefill.
    power_share
        Average power of one GPU over its board power.
    source, left_out
        As in `StepRows`.
    """

    llm: Shaped[np.ndarray, " N"]
    gpu: Shaped[np.ndarray, " N"]
    engine: Shaped[np.ndarray, " N"]
    tp: Int64[np.ndarray, " N"]
    sequences: Float64[np.ndarray, " N"]
    prompt_tokens: Float64[np.ndarray, " N"]
    output_tokens: Float64[np.ndarray, " N"]
    seconds: Float64[np.ndarray, " N"]
    prefill_s: Float64[np.ndarray, " N"]
    power_share: Float64[np.ndarray, " N"]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.seconds)

    def keys(self) -> list[str]:
        """Return a text per run that names its shape and no gpu, llm, time or power."""
        columns = (self.tp, self.sequences, self.prompt_tokens, self.output_tokens)
        return [f"run tp{tp:d} b{b:g} n{n:g} o{o:g}" for tp, b, n, o in zip(*columns, strict=True)]
