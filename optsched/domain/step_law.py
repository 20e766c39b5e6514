"""The time and energy of one step of a replica, for any mix of prefill and decode, as a few coefficients."""

from __future__ import annotations

from typing import Self

import numpy as np
from jaxtyping import Float, Num
from pydantic import Field, model_validator

from optsched.domain.frozen import Frozen

Array = np.ndarray


class StepLaw(Frozen):
    """Coefficients of ``step_s = overhead + max(floor, gemm(T) + p sum n_i (c_i + n_i/2) + c KV + b B + h H)``.

    T is the number of tokens in the step (prefill and decode), n_i and c_i the new tokens and the context of each
    sequence in prefill, KV the summed context of the decoding sequences held as KV cache and H of those held as hidden
    cache, B the number of sequences in the step. Energy is linear in the same quantities.

    Attributes
    ----------
    gemm_tokens, gemm_s
        Knots of the piecewise linear gemm(T); the last slope continues beyond the last knot.
    pair_s
        p: per (new token, context token) pair of prefill attention.
    kv_s
        c: per token of KV cache that a decode reads.
    sequence_s
        b: per sequence.
    hidden_s
        h: per token whose K and V are rebuilt from hidden cache.
    floor_s, overhead_s
        Shortest device time of a step, and the time between steps.
    busy_slowdown
        Factor on the step time with 1, 2, ... replicas busy on the same host; the last entry continues.
    step_j, token_j, pair_j, kv_j, hidden_j
        Dynamic energy (above idle) per step, token, pair, KV token and hidden token.
    idle_w
        Power drawn whether or not the replica works; all GPUs of the replica together.
    """

    overhead_s: float = Field(ge=0)
    floor_s: float = Field(ge=0)
    gemm_tokens: tuple[float, ...] = Field(min_length=2)
    gemm_s: tuple[float, ...] = Field(min_length=2)
    pair_s: float = Field(ge=0)
    kv_s: float = Field(ge=0)
    sequence_s: float = Field(ge=0)
    hidden_s: float = Field(ge=0)
    busy_slowdown: tuple[float, ...] = (1.0,)
    step_j: float = Field(default=0.0, ge=0)
    token_j: float = Field(default=0.0, ge=0)
    pair_j: float = Field(default=0.0, ge=0)
    kv_j: float = Field(default=0.0, ge=0)
    hidden_j: float = Field(default=0.0, ge=0)
    idle_w: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _knots_increase(self) -> Self:
        if len(self.gemm_tokens) != len(self.gemm_s):
            raise ValueError(f"gemm_tokens has {len(self.gemm_tokens)} knots and gemm_s {len(self.gemm_s)}; give as many of each")
        if np.any(np.diff(self.gemm_tokens) <= 0):
            raise ValueError("gemm_tokens must increase strictly")
        if np.any(np.asarray(self.gemm_s) < 0) or np.any(np.diff(self.gemm_s) < 0):
            raise ValueError("gemm_s must be non-negative and must not decrease")
        if not self.busy_slowdown or self.busy_slowdown[0] != 1 or np.any(np.diff(self.busy_slowdown) < 0):
            raise ValueError("busy_slowdown must start at 1 and must not decrease")
        return self

    def gemm(self, tokens: Num[Array, "*shape"] | float) -> Float[Array, "*shape"]:
        """Return gemm(T) in seconds, piecewise linear, the last slope continued."""
        knots, values = np.asarray(self.gemm_tokens, float), np.asarray(self.gemm_s, float)
        tokens = np.asarray(tokens, dtype=float)
        slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
        beyond = np.maximum(tokens - knots[-1], 0.0) * slope
        return np.asarray(np.interp(tokens, knots, values) + beyond)

    def step_s(
        self,
        tokens: Num[Array, "*shape"] | float,
        pairs: Num[Array, "*shape"] | float = 0.0,
        kv_tokens: Num[Array, "*shape"] | float = 0.0,
        sequences: Num[Array, "*shape"] | float = 1.0,
        hidden_tokens: Num[Array, "*shape"] | float = 0.0,
    ) -> Float[Array, "*shape"]:
        """Return the duration of a step in seconds (one replica busy on its host).

        Parameters
        ----------
        tokens
            T, tokens computed in the step.
        pairs
            ``sum n_i (c_i + n_i/2)`` over sequences in prefill.
        kv_tokens, hidden_tokens
            Cached tokens that decoding sequences read as KV, and rebuild from hidden cache.
        sequences
            B, sequences in the step.
        """
        work = (
            self.gemm(tokens)
            + self.pair_s * np.asarray(pairs, float)
            + self.kv_s * np.asarray(kv_tokens, float)
            + self.sequence_s * np.asarray(sequences, float)
            + self.hidden_s * np.asarray(hidden_tokens, float)
        )
        return np.asarray(self.overhead_s + np.maximum(self.floor_s, work))

    def energy_j(
        self, tokens: float, pairs: float = 0.0, kv_tokens: float = 0.0, hidden_tokens: float = 0.0, steps: float = 1.0
    ) -> float:
        """Return the dynamic energy (above idle) of steps with these totals, in joules."""
        return (
            self.step_j * steps
            + self.token_j * tokens
            + self.pair_j * pairs
            + self.kv_j * kv_tokens
            + self.hidden_j * hidden_tokens
        )

    def prefill_s(self, new_tokens: int, context: int, chunk: int) -> float:
        """Return the time of one sequence's prefill alone, in chunks of at most `chunk` tokens."""
        if new_tokens <= 0:
            return 0.0
        starts = np.arange(0, new_tokens, chunk, dtype=float)
        sizes = np.minimum(float(chunk), new_tokens - starts)
        return float(self.step_s(sizes, sizes * (context + starts + sizes / 2)).sum())

    def decode_s(self, first_context: int, steps: int) -> float:
        """Return the time of `steps` decode steps of one sequence alone; the first reads `first_context` cached tokens."""
        if steps <= 0:
            return 0.0
        return float(self.step_s(1.0, 0.0, first_context + np.arange(steps, dtype=float), 1.0).sum())
