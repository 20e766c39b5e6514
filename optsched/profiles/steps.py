"""Durations and powers of whole steps and whole runs, as other people measured them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from optsched.profiles.rows import MeasuredRows

Kind = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows(MeasuredRows):
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
    """

    kind: Shaped[np.ndarray, " N"]
    llm: Shaped[np.ndarray, " N"]
    gpu: Shaped[np.ndarray, " N"]
    engine: Shaped[np.ndarray, " N"]
    tp: Int64[np.ndarray, " N"]
    sequences: Float64[np.ndarray, " N"]
    new_tokens: Float64[np.ndarray, " N"]
    context_tokens: Float64[np.ndarray, " N"]

    def keys(self) -> list[str]:
        """Return a text per step that names its shape and no gpu, llm or time: the same shape has the same key anywhere."""
        columns = (self.kind, self.tp, self.sequences, self.new_tokens, self.context_tokens)
        return [f"{kind} tp{tp:d} b{b:g} n{n:g} c{c:g}" for kind, tp, b, n, c in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows(MeasuredRows):
    """Runs of one batch from prompt to last token, with the power that one GPU drew on average.

    Attributes
    ----------
    llm, gpu, engine, tp, sequences
        As in `StepRows`.
    prompt_tokens, output_tokens
        Of each sequence.
    prefill_s
        Duration of the prefill; `seconds` is that of the whole run.
    power_share
        Average power of one GPU over its board power.
    """

    llm: Shaped[np.ndarray, " N"]
    gpu: Shaped[np.ndarray, " N"]
    engine: Shaped[np.ndarray, " N"]
    tp: Int64[np.ndarray, " N"]
    sequences: Float64[np.ndarray, " N"]
    prompt_tokens: Float64[np.ndarray, " N"]
    output_tokens: Float64[np.ndarray, " N"]
    prefill_s: Float64[np.ndarray, " N"]
    power_share: Float64[np.ndarray, " N"]

    def keys(self) -> list[str]:
        """Return a text per run that names its shape and no gpu, llm, time or power."""
        columns = (self.tp, self.sequences, self.prompt_tokens, self.output_tokens)
        return [f"run tp{tp:d} b{b:g} n{n:g} o{o:g}" for tp, b, n, o in zip(*columns, strict=True)]
