"""Condense the full cost model of a replica into one step law, and say how far the law is from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import nnls

from optsched.cost.evaluate import StepCosts, evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.precision import double_precision
from optsched.cost.samples import decode_steps, gemm_knots, joined, mixed_steps, prefill_steps, random_steps
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.step import launch_floor
from optsched.cost.tier import TierParameters, link_of, network_of
from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw
from optsched.domain.dtypes import Dtype
from optsched.domain.efficiency import Origin
from optsched.domain.experts_law import ExpertsLaw
from optsched.domain.gemm_law import GemmLaw
from optsched.domain.hardware import Gpu, Link, Tier
from optsched.domain.llm import Llm
from optsched.domain.step_law import StepLaw

Array = np.ndarray
_Table = (
    Mapping[Dtype, GemmLaw]
    | Mapping[Dtype, PrefillAttentionLaw]
    | Mapping[Dtype, DecodeAttentionLaw]
    | Mapping[Dtype, ExpertsLaw]
)


def fitted_law(gpu: Gpu, llm: Llm, tp: int = 1, pp: int = 1) -> StepLaw | None:
    """Return the step law measured on a gpu for an llm, if its file has one."""
    fits = (entry.law for entry in gpu.step_laws if entry.llm == llm.name and entry.tp == tp and pp == 1)
    return next(fits, None)


def origin(gpu: Gpu, llm: Llm | None = None, tp: int = 1, pp: int = 1) -> Origin:
    """Return whether the numbers for a gpu (and llm; None: a dense one in 16 bits) were fitted to measurements or assumed.

    Notes
    -----
    Fitted is what has a measured step law, or a fit of every law that most of a step's time is under: matrix products and both
    attentions, and for routed llms the experts, each at the llm's own data type. Else the gpu's file decides.
    """
    if llm is not None and fitted_law(gpu, llm, tp, pp) is not None:
        return "fitted"
    laws, weights, cache = gpu.efficiency, llm.dtype if llm else "bf16", llm.cache_dtype if llm else "bf16"
    latent = llm is not None and llm.mla is not None
    prefill = laws.latent_prefill_attention if latent else laws.prefill_attention
    decode = laws.latent_decode_attention if latent else laws.decode_attention
    used: list[tuple[_Table, Dtype]] = [(laws.gemm, weights), (prefill, cache), (decode, cache)]
    if llm is not None and llm.moe is not None:
        used.append((laws.experts, weights))
    return "fitted" if all(_is_fitted(table, dtype) for table, dtype in used) else laws.origin


def _is_fitted(laws: _Table, dtype: Dtype) -> bool:
    """Return whether a data type's law was fitted; one law serves both 16-bit types."""
    same: tuple[Dtype, ...] = ("bf16", "fp16") if dtype in ("bf16", "fp16") else (dtype,)
    return any(each in laws and laws[each].fit is not None for each in same)


def step_law(
    llm: Llm, tier: Tier, *, tp: int = 1, pp: int = 1, link: Link | None = None, expert_parallel: bool = False
) -> StepLaw:
    """Return the step law of a replica: the measured one if its gpu has one, else the full model condensed.

    Parameters
    ----------
    llm, tier
        What is served, and where.
    tp, pp
        GPUs per layer, and pipeline stages (one batch in flight).
    link
        Between the replica's GPUs; None: the gpu's own interconnect.
    expert_parallel
        Whether the GPUs of a stage hold whole experts (`Layout`).

    Raises
    ------
    SpecError
        If the llm cannot be split so, or the gpu has no FLOP rate for its data type.
    UnknownNameError
        If the gpu's interconnect is in no link file.

    Notes
    -----
    gemm is piecewise linear between powers of two of T, and the edges of tiles where the kernels' times show them. Its
    increments and the slopes p, q, c, b, h, s solve one non-negative least-squares problem on prefill, decode and mixed
    steps, each weighted by its step time, so that the relative error is minimised; energies likewise. The law expects pairs
    and cached tokens after the sliding window if every layer of the llm has one (`attended_pairs`), and whole contexts if
    any layer has none.
    """
    measured = fitted_law(tier.gpu, llm, tp, pp)
    if measured is not None:
        return measured
    parameters, shape = replica_parameters(llm, tier, tp=tp, pp=pp, link=link, expert_parallel=expert_parallel)
    most, window, tile = float(llm.max_positions), llm.layer_window, float(parameters.gemm.row_quantum)
    features = joined([prefill_steps(most, window, tile), decode_steps(most, window), mixed_steps(most, window)])
    costs = evaluate_steps(parameters, shape, features)
    return StepLaw(
        overhead_s=float(parameters.step_overhead_s),
        floor_s=float(launch_floor(parameters, shape)),
        **_times(features, costs, gemm_knots(tile)),
        **_energies(features, costs, gemm_knots(tile)),
        idle_w=tier.gpu.efficiency.idle_w * tp * pp,
    )


def replica_parameters(
    llm: Llm, tier: Tier, *, tp: int = 1, pp: int = 1, link: Link | None = None, expert_parallel: bool = False
) -> tuple[TierParameters, LlmShape]:
    """Return what the full model needs of a replica.

    Raises
    ------
    SpecError, UnknownNameError
        As `step_law`.
    """
    shape = LlmShape.of(llm, Layout(tp, pp, expert_parallel))
    links = link_of(tier, link, tp * pp), network_of(tier, tp * pp)
    return TierParameters.of(tier, llm, *links, tp=tp), shape


def _weighted_nnls(columns: Float64[Array, "S K"], target: Float64[Array, " S"], weight: Float64[Array, " S"]) -> Array:
    rows = columns * weight[:, None]
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    solution, _ = nnls(rows / scale, target * weight)
    return np.asarray(solution / scale)


def _hat_columns(tokens: Float64[Array, " S"], knots: Float64[Array, " K"]) -> Float64[Array, "S K"]:
    """Return the columns whose non-negative combinations are the non-decreasing piecewise linear functions of T."""
    rise = (tokens[:, None] - knots[:-1]) / np.diff(knots)
    rise[:, :-1] = np.clip(rise[:, :-1], 0.0, 1.0)
    return np.concatenate([np.ones((len(tokens), 1)), np.maximum(rise, 0.0)], axis=1)


def _columns(features: StepFeatures, knots: Float64[Array, " K"]) -> Float64[Array, "S K+6"]:
    hidden = np.asarray(features.hidden_tokens)
    linear = (
        features.pairs, features.prefill_context_tokens, features.kv_tokens, features.sequences, hidden, np.minimum(hidden, 1.0),
    )  # fmt: skip
    return np.concatenate(
        [_hat_columns(np.asarray(features.tokens), knots), np.stack([np.asarray(x) for x in linear], axis=1)], axis=1
    )


def _times(features: StepFeatures, costs: StepCosts, knots: Float64[Array, " K"]) -> dict[str, float | tuple[float, ...]]:
    solution = _weighted_nnls(_columns(features, knots), costs.work_s, 1.0 / costs.seconds)
    slopes = ("pair_s", "prefill_context_s", "kv_s", "sequence_s", "hidden_s", "hidden_step_s")
    return {
        "gemm_tokens": tuple(map(float, knots)),
        "gemm_s": tuple(map(float, np.cumsum(solution[: len(knots)]))),
        **dict(zip(slopes, map(float, solution[len(knots) :]), strict=True)),
    }


def _energies(features: StepFeatures, costs: StepCosts, knots: Float64[Array, " K"]) -> dict[str, float | tuple[float, ...]]:
    solution = _weighted_nnls(_columns(features, knots), costs.dynamic_j, 1.0 / costs.joules)
    slopes = ("pair_j", "prefill_context_j", "kv_j", "sequence_j", "hidden_j", "hidden_step_j")
    return {
        "step_j": float(solution[0]),
        "gemm_j": (0.0, *map(float, np.cumsum(solution[1 : len(knots)]))),
        **dict(zip(slopes, map(float, solution[len(knots) :]), strict=True)),
    }


def law_totals(features: StepFeatures) -> dict[str, Float64[Array, " S"]]:
    """Return the totals of steps by the names of the arguments of `StepLaw.step_s` and `StepLaw.energy_j`."""
    names = ("tokens", "pairs", "kv_tokens", "sequences", "hidden_tokens", "prefill_context_tokens")
    return {name: np.asarray(getattr(features, name)) for name in names}


@dataclass(frozen=True, slots=True)
class LawError:
    """Relative error of a step law against the full model: mean absolute and largest, of time and of energy."""

    mape: float
    max: float
    energy_mape: float
    energy_max: float


@double_precision
def step_law_error(
    law: StepLaw, llm: Llm, tier: Tier, *, tp: int = 1, pp: int = 1, link: Link | None = None, seed: int = 0
) -> dict[str, LawError]:
    """Return the error of a step law against the full model on random steps that it was not fitted to.

    Parameters
    ----------
    law
        To be judged.
    llm, tier, tp, pp, link
        The replica, as in `step_law`.
    seed
        Of the steps.

    Returns
    -------
    dict
        `LawError` of pure ``prefill``, pure ``decode`` and ``mixed`` steps, contexts up to the llm's positions.
    """
    parameters, shape = replica_parameters(llm, tier, tp=tp, pp=pp, link=link)
    errors = {}
    for kind, features in random_steps(seed, most_context=float(llm.max_positions), window=llm.layer_window).items():
        costs = evaluate_steps(parameters, shape, features)
        totals = law_totals(features)
        seconds = law.step_s(**totals)
        late = np.abs(seconds / costs.seconds - 1)
        costly = np.abs((law.energy_j(**totals) + law.idle_w * seconds) / costs.joules - 1)
        errors[kind] = LawError(float(late.mean()), float(late.max()), float(costly.mean()), float(costly.max()))
    return errors
