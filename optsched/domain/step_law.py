"""The time and energy of one step of a replica, for any mix of prefill and decode, as a few coefficients."""

from __future__ import annotations

from typing import Self

import numpy as np
from jaxtyping import Float, Num
from pydantic import Field, model_validator

from optsched.domain.frozen import Frozen
from optsched.domain.slowdown import Slowdown

Array = np.ndarray
Numbers = Num[Array, "*shape"] | float
JITTER_QUANTILES = 20
"""Factors in a row of jitter: those of the middles of as many equal shares of the steps."""


class StepLaw(Frozen):
    """Coefficients of ``step_s = overhead + max(floor, gemm(T) + p pairs + q C + c KV + b B + h H + s [H])``.

    T is the number of tokens in the step (prefill and decode); of the sequences in prefill, with n_i new tokens on a context of
    c_i, pairs is ``sum n_i (c_i + n_i/2)`` and C is ``sum c_i``; KV is the summed context of the decoding sequences held as KV
    cache and H of those held as hidden cache, [H] is 1 if there is any; B is the number of sequences in the step. Energy has
    the same form, without floor.

    Attributes
    ----------
    gemm_tokens, gemm_s, gemm_j
        Knots of the piecewise linear gemm(T) and of its energy; the last slope continues beyond the last knot. A law of an
        earlier version gives ``token_j``, joules per token, instead of `gemm_j`.
    pair_s
        p: per (new token, context token) pair of prefill attention.
    prefill_context_s
        q: per token of context that a sequence in prefill reads.
    kv_s
        c: per token of KV cache that a decode reads.
    sequence_s
        b: per sequence.
    hidden_s
        h: per token whose K and V are rebuilt from hidden cache.
    hidden_step_s
        s: once per step that rebuilds any hidden cache (launches, and messages between GPUs).
    floor_s, overhead_s
        Shortest device time of a step, and the time between steps.
    busy_slowdown
        Factor on the step time with 1, 2, ... replicas busy on the same host; the last entry continues.
    decode_jitter, prefill_jitter
        How the times of steps on a shared host scatter about their mean, of those that only decode and of the others: per
        number of busy replicas (the last row continues) `JITTER_QUANTILES` factors of mean 1, in rising order, each as likely
        as the next. No rows: they do not.
    step_j, pair_j, prefill_context_j, kv_j, sequence_j, hidden_j, hidden_step_j
        Dynamic energy (above idle) per step, pair, token of context read in prefill, KV token, sequence and hidden token, and
        per step that rebuilds any.
    idle_w
        Power drawn whether or not the replica works; all GPUs of the replica together.
    """

    overhead_s: float = Field(ge=0)
    floor_s: float = Field(ge=0)
    gemm_tokens: tuple[float, ...] = Field(min_length=2)
    gemm_s: tuple[float, ...] = Field(min_length=2)
    pair_s: float = Field(ge=0)
    prefill_context_s: float = Field(default=0.0, ge=0)
    kv_s: float = Field(ge=0)
    sequence_s: float = Field(ge=0)
    hidden_s: float = Field(ge=0)
    hidden_step_s: float = Field(default=0.0, ge=0)
    busy_slowdown: Slowdown = (1.0,)
    decode_jitter: tuple[tuple[float, ...], ...] = ()
    prefill_jitter: tuple[tuple[float, ...], ...] = ()
    step_j: float = Field(default=0.0, ge=0)
    gemm_j: tuple[float, ...] = ()
    pair_j: float = Field(default=0.0, ge=0)
    prefill_context_j: float = Field(default=0.0, ge=0)
    kv_j: float = Field(default=0.0, ge=0)
    sequence_j: float = Field(default=0.0, ge=0)
    hidden_j: float = Field(default=0.0, ge=0)
    hidden_step_j: float = Field(default=0.0, ge=0)
    idle_w: float = Field(default=0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _linear_energy_as_knots(cls, data: object) -> object:
        """Turn the joules per token of a law of an earlier version (none: 0) into knots."""
        if not isinstance(data, dict) or "gemm_j" in data:
            return data
        rest = {name: value for name, value in data.items() if name != "token_j"}
        per_token, knots = data.get("token_j", 0.0), data.get("gemm_tokens")
        if not isinstance(per_token, int | float):
            raise ValueError(f"token_j must be a number of joules per token, not {per_token!r}")  # noqa: TRY004
        if not isinstance(knots, list | tuple) or not all(isinstance(knot, int | float) for knot in knots):
            return rest  # what is wrong with the knots is said where they are checked
        return {**rest, "gemm_j": tuple(float(per_token * knot) for knot in knots)}

    @model_validator(mode="after")
    def _knots_increase(self) -> Self:
        for name in ("gemm_s", "gemm_j"):
            values = getattr(self, name)
            if len(self.gemm_tokens) != len(values):
                raise ValueError(f"gemm_tokens has {len(self.gemm_tokens)} knots and {name} {len(values)}; give as many of each")
        if np.any(np.diff(self.gemm_tokens) <= 0):
            raise ValueError("gemm_tokens must increase strictly")
        for name in ("gemm_s", "gemm_j"):
            values = np.asarray(getattr(self, name))
            if np.any(values < 0) or np.any(np.diff(values) < 0):
                raise ValueError(f"{name} must be non-negative and must not decrease")
        return self

    @model_validator(mode="after")
    def _jitter_keeps_the_mean(self) -> Self:
        for name in ("decode_jitter", "prefill_jitter"):
            for row in getattr(self, name):
                if len(row) != JITTER_QUANTILES or row[0] <= 0 or np.any(np.diff(row) < 0) or abs(np.mean(row) - 1) > 1e-3:
                    raise ValueError(f"each row of {name} must be {JITTER_QUANTILES} positive factors in rising order, of mean 1")
        return self

    def gemm(self, tokens: Numbers) -> Float[Array, "*shape"]:
        """Return gemm(T) in seconds, piecewise linear, the last slope continued."""
        return _piecewise(tokens, self.gemm_tokens, self.gemm_s)

    def gemm_energy(self, tokens: Numbers) -> Float[Array, "*shape"]:
        """Return the energy of T tokens in joules, piecewise linear between the same knots."""
        return _piecewise(tokens, self.gemm_tokens, self.gemm_j)

    def step_s(
        self,
        tokens: Numbers,
        pairs: Numbers = 0.0,
        kv_tokens: Numbers = 0.0,
        sequences: Numbers = 1.0,
        hidden_tokens: Numbers = 0.0,
        prefill_context_tokens: Numbers = 0.0,
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
        prefill_context_tokens
            ``sum c_i`` over sequences in prefill.
        """
        work = (
            self.gemm(tokens)
            + self.pair_s * np.asarray(pairs, float)
            + self.prefill_context_s * np.asarray(prefill_context_tokens, float)
            + self.kv_s * np.asarray(kv_tokens, float)
            + self.sequence_s * np.asarray(sequences, float)
            + self.hidden_s * np.asarray(hidden_tokens, float)
            + self.hidden_step_s * np.minimum(hidden_tokens, 1.0)
        )
        return np.asarray(self.overhead_s + np.maximum(self.floor_s, work))

    def energy_j(
        self,
        tokens: Numbers,
        pairs: Numbers = 0.0,
        kv_tokens: Numbers = 0.0,
        sequences: Numbers = 1.0,
        hidden_tokens: Numbers = 0.0,
        prefill_context_tokens: Numbers = 0.0,
    ) -> Float[Array, "*shape"]:
        """Return the dynamic energy (above idle) of a step in joules; parameters as of `step_s`."""
        return np.asarray(
            self.step_j
            + self.gemm_energy(tokens)
            + self.pair_j * np.asarray(pairs, float)
            + self.prefill_context_j * np.asarray(prefill_context_tokens, float)
            + self.kv_j * np.asarray(kv_tokens, float)
            + self.sequence_j * np.asarray(sequences, float)
            + self.hidden_j * np.asarray(hidden_tokens, float)
            + self.hidden_step_j * np.minimum(hidden_tokens, 1.0)
        )

    def prefill_s(self, new_tokens: int, context: int, chunk: int) -> float:
        """Return the time of one sequence's prefill alone, in chunks of at most `chunk` tokens."""
        if new_tokens <= 0:
            return 0.0
        starts = np.arange(0, new_tokens, chunk, dtype=float)
        sizes = np.minimum(float(chunk), new_tokens - starts)
        before = context + starts
        return float(self.step_s(sizes, sizes * (before + sizes / 2), prefill_context_tokens=before).sum())

    def decode_s(self, first_context: int, steps: int) -> float:
        """Return the time of `steps` decode steps of one sequence alone; the first reads `first_context` cached tokens."""
        if steps <= 0:
            return 0.0
        return float(self.step_s(1.0, 0.0, first_context + np.arange(steps, dtype=float), 1.0).sum())


def _piecewise(tokens: Numbers, knots: tuple[float, ...], values: tuple[float, ...]) -> Float[Array, "*shape"]:
    x, y = np.asarray(knots, float), np.asarray(values, float)
    tokens = np.asarray(tokens, dtype=float)
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return np.asarray(np.interp(tokens, x, y) + np.maximum(tokens - x[-1], 0.0) * slope)
