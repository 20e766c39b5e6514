"""Estimate one prefill and one decode step of an llm on a tier: time, energy, memory, and what each is sensitive to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from optsched.cost.breakdown import BreakdownRow, breakdown
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures, WindowedTotals, attended_pairs, attended_tokens
from optsched.cost.memory import Memory, memory
from optsched.cost.sensitivity import Sensitivity, sensitivities
from optsched.cost.tables import fitted_law, law_totals, origin, replica_parameters
from optsched.cost.uncertainty import Uncertainty, uncertainties
from optsched.domain.efficiency import Origin
from optsched.domain.hardware import Link, Tier
from optsched.domain.llm import Llm
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError

CHUNK_TOKENS = 2048  # the token budget of a step unless an engine says otherwise
MAX_CHUNKS = 1_000_000  # steps of one prefill: all of them are evaluated at once, in some 100 MB


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one llm on one tier takes.

    Attributes
    ----------
    prefill_s, prefill_energy_j
        Prefill of one prompt alone, in chunks; energy with the idle power of all GPUs.
    decode_step_s, decode_energy_j_per_token
        One decode step of the batch, and its energy over the tokens it yields.
    memory
        Weights, caches and the KV token budget.
    origin
        ``fitted`` if the coefficients were fitted to measurements, else ``assumed``.
    prefill, decode
        Where the time of the prompt's last chunk and of the decode step goes; empty where a measured step law was used.
    prefill_sensitivity, decode_sensitivity
        What each resource does to the time (`optsched.cost.sensitivity.sensitivities`); None if not asked for.
    prefill_standard_error_s, decode_step_standard_error_s, prefill_energy_standard_error_j,
    decode_energy_standard_error_j_per_token
        How far the fit of the laws leaves the figure open; None where no law in use was fitted, or a measured step law was
        used. It leaves out by how much a law errs that has the best coefficients:
    prefill_model_error, decode_step_model_error
        Mean error of the laws on held-out measurements, weighted by their shares of the time; None where there are none.
    not_fitted
        Families of operations that take part of either time and whose laws were not fitted.
    """

    prefill_s: float
    decode_step_s: float
    prefill_energy_j: float
    decode_energy_j_per_token: float
    memory: Memory
    origin: Origin
    prefill: tuple[BreakdownRow, ...] = ()
    decode: tuple[BreakdownRow, ...] = ()
    prefill_sensitivity: dict[str, Sensitivity] | None = None
    decode_sensitivity: dict[str, Sensitivity] | None = None
    prefill_standard_error_s: float | None = None
    decode_step_standard_error_s: float | None = None
    prefill_energy_standard_error_j: float | None = None
    decode_energy_standard_error_j_per_token: float | None = None
    prefill_model_error: float | None = None
    decode_step_model_error: float | None = None
    not_fitted: tuple[str, ...] = ()


class _Errors(TypedDict):
    prefill_standard_error_s: float | None
    decode_step_standard_error_s: float | None
    prefill_energy_standard_error_j: float | None
    decode_energy_standard_error_j_per_token: float | None
    prefill_model_error: float | None
    decode_step_model_error: float | None
    not_fitted: tuple[str, ...]


def prefill_chunks(llm: Llm, prompt_tokens: int, chunk_tokens: int, context_tokens: int = 0) -> StepFeatures:
    """Return the steps of one prompt's prefill in chunks; the last one emits the first token.

    Parameters
    ----------
    llm
        For its sliding window.
    prompt_tokens, context_tokens
        New tokens, and tokens already cached before them.
    chunk_tokens
        Most new tokens of a step.

    Raises
    ------
    SpecError
        If that takes more than `MAX_CHUNKS` steps.
    """
    if (steps := -(-prompt_tokens // chunk_tokens)) > MAX_CHUNKS:
        raise SpecError(
            f"a prompt of {prompt_tokens} tokens in chunks of {chunk_tokens} takes {steps} steps, more than {MAX_CHUNKS}; "
            "lower the prompt, or raise the chunk"
        )
    starts = np.arange(0, prompt_tokens, chunk_tokens, dtype=float)
    sizes = np.minimum(float(chunk_tokens), prompt_tokens - starts)
    before, window = context_tokens + starts, llm.common_window
    windowed = WindowedTotals.of(
        pairs=attended_pairs(sizes, before, llm.sliding_window),
        prefill_context_tokens=attended_tokens(before, llm.sliding_window),
    )
    return StepFeatures.of(
        prefill_tokens=sizes,
        pairs=attended_pairs(sizes, before, window),
        prefill_context_tokens=attended_tokens(before, window),
        emitting=(starts + sizes >= prompt_tokens).astype(float),
        windowed=windowed if llm.layer_window else None,
    )


def decode_step(llm: Llm, batch: int, context_tokens: int, hidden_tokens: int = 0) -> StepFeatures:
    """Return the decode step of a batch of equal contexts, `hidden_tokens` of all its cached tokens held as hidden cache."""

    def seen(window: int | None) -> tuple[float, float]:
        cached = batch * float(attended_tokens(context_tokens, window))
        # A rebuilt token that the window hides is rebuilt no more than it is read.
        hidden = min(float(hidden_tokens), cached)
        return cached - hidden, hidden

    kv, hidden = seen(llm.common_window)
    windowed_kv, windowed_hidden = seen(llm.sliding_window)
    windowed = WindowedTotals.of(kv_tokens=windowed_kv, hidden_tokens=windowed_hidden)
    return StepFeatures.of(
        decode_sequences=float(batch),
        kv_tokens=kv,
        hidden_tokens=hidden,
        windowed=windowed if llm.layer_window else None,
    )


def _check(prompt_tokens: int, batch: int, context_tokens: int, hidden_tokens: int, chunk_tokens: int) -> None:
    for name, value in (("prompt", prompt_tokens), ("batch", batch), ("context", context_tokens), ("chunk", chunk_tokens)):
        if value < 1:
            raise SpecError(f"{name} {value} must be at least 1; give a positive whole number")
    if not 0 <= hidden_tokens <= batch * context_tokens:
        raise SpecError(
            f"hidden tokens {hidden_tokens} must lie between 0 and the batch's {batch * context_tokens} cached tokens; "
            "lower them, or raise batch or context"
        )


def estimate(
    llm: Llm,
    tier: Tier,
    *,
    tp: int = 1,
    pp: int = 1,
    prompt_tokens: int,
    batch: int,
    context_tokens: int,
    hidden_tokens: int = 0,
    chunk_tokens: int = CHUNK_TOKENS,
    link: Link | None = None,
    expert_parallel: bool = False,
    sensitivity: bool = False,
) -> Estimate:
    """Estimate one prefill and one decode step.

    Parameters
    ----------
    llm, tier, tp, pp, link, expert_parallel
        The replica, as in `step_law`.
    prompt_tokens
        Prompt of the prefill.
    batch, context_tokens, hidden_tokens
        Sequences in the decode step, cached tokens of each, and how many of all cached tokens are held as hidden cache.
    chunk_tokens
        Most new tokens per step of the prefill.
    sensitivity
        Whether to compute sensitivities.

    Raises
    ------
    SpecError
        If a number is out of range, or the llm cannot be split so.
    InfeasibleError
        If the llm does not fit.
    """
    _check(prompt_tokens, batch, context_tokens, hidden_tokens, chunk_tokens)
    fits = memory(llm, tier, tp=tp, pp=pp, context_tokens=context_tokens)
    chunks, step = prefill_chunks(llm, prompt_tokens, chunk_tokens), decode_step(llm, batch, context_tokens, hidden_tokens)
    measured = None if expert_parallel else fitted_law(tier.gpu, llm, tp, pp)
    if measured is not None:
        return _from_law(measured, fits, chunks, step)
    parameters, shape = replica_parameters(llm, tier, tp=tp, pp=pp, link=link, expert_parallel=expert_parallel)
    prefill, decode = evaluate_steps(parameters, shape, chunks), evaluate_steps(parameters, shape, step.rows())
    open_prefill, open_decode = uncertainties(llm, tier, [chunks, step], tp=tp, pp=pp, link=link, expert_parallel=expert_parallel)
    return Estimate(
        prefill_s=float(prefill.seconds.sum()),
        decode_step_s=float(decode.seconds[0]),
        prefill_energy_j=float(prefill.joules.sum()),
        decode_energy_j_per_token=float(decode.joules[0]) / batch,
        memory=fits,
        origin=origin(tier.gpu, llm, tp, pp),
        prefill=breakdown(parameters, shape, chunks.row(-1)),
        decode=breakdown(parameters, shape, step),
        prefill_sensitivity=sensitivities(parameters, shape, chunks) if sensitivity else None,
        decode_sensitivity=sensitivities(parameters, shape, step) if sensitivity else None,
        **_errors(open_prefill, open_decode, batch),
    )


def _errors(prefill: Uncertainty, decode: Uncertainty, batch: int) -> _Errors:
    spread_j = decode.standard_error_j
    return {
        "prefill_standard_error_s": prefill.standard_error_s,
        "decode_step_standard_error_s": decode.standard_error_s,
        "prefill_energy_standard_error_j": prefill.standard_error_j,
        "decode_energy_standard_error_j_per_token": None if spread_j is None else spread_j / batch,
        "prefill_model_error": prefill.model_error,
        "decode_step_model_error": decode.model_error,
        "not_fitted": tuple(dict.fromkeys((*prefill.unknown, *decode.unknown))),
    }


def _from_law(law: StepLaw, fits: Memory, chunks: StepFeatures, step: StepFeatures) -> Estimate:
    def cost(features: StepFeatures) -> tuple[float, float]:
        totals = law_totals(features)
        seconds = float(law.step_s(**totals).sum())
        return seconds, float(law.energy_j(**totals).sum()) + law.idle_w * seconds

    prefill_s, prefill_j = cost(chunks)
    decode_s, decode_j = cost(step)
    return Estimate(
        prefill_s=prefill_s,
        decode_step_s=decode_s,
        prefill_energy_j=prefill_j,
        decode_energy_j_per_token=decode_j / float(step.decode_sequences),
        memory=fits,
        origin="fitted",
    )
