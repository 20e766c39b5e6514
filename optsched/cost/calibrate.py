"""Fit a step law to measured steps, with a held-out share chosen before the fit."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.optimize import least_squares

from optsched.cost.precision import double_precision
from optsched.domain.log import Steps
from optsched.domain.slowdown import factors_at, slowdown_of
from optsched.domain.step_law import StepLaw
from optsched.errors import ProblemError

Array = np.ndarray
_FEWEST_STEPS = 40
_OUTLIER = 0.05  # relative error beyond which a step counts linearly, not quadratically (soft L1)
_SLOPES = ("pair_s", "prefill_context_s", "kv_s", "sequence_s", "hidden_s", "hidden_step_s")
_FEW_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0)
_FLOOR_QUANTILES = (0.02, 0.1, 0.3)


@dataclass(frozen=True, slots=True)
class FitReport:
    """A fitted step law and how well it predicts.

    Attributes
    ----------
    law
        The fit.
    train_mape, heldout_mape
        Mean absolute relative error of the step durations it was and was not fitted to; outliers count in full.
    heldout_median
        Median of the held-out errors, which outliers do not move.
    num_steps
        Steps used, held-out ones included.
    busy_slowdown
        Factors with 1, 2, ... busy replicas (as in `law`).
    """

    law: StepLaw
    train_mape: float
    heldout_mape: float
    heldout_median: float
    num_steps: int
    busy_slowdown: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Columns of the law for each step, and what was measured."""

    columns: Float64[Array, "S K"]
    device_s: Float64[Array, " S"]
    duration_s: Float64[Array, " S"]
    busy: Int64[Array, " S"]

    def subset(self, chosen: Int64[Array, " N"]) -> _Measured:
        """Return some of the steps."""
        return _Measured(self.columns[chosen], self.device_s[chosen], self.duration_s[chosen], self.busy[chosen])


def _check(steps: Steps, durations_s: Float64[Array, " S"], heldout_share: float) -> None:
    if len(durations_s) != len(steps.replica):
        raise ProblemError(f"{len(durations_s)} durations for {len(steps.replica)} steps; give one duration per step")
    if len(durations_s) < _FEWEST_STEPS:
        raise ProblemError(f"{len(durations_s)} measured steps are too few for a step law; measure at least {_FEWEST_STEPS}")
    if not 0 < heldout_share < 1:
        raise ProblemError(f"held-out share {heldout_share:g} must lie between 0 and 1; 0.2 is usual")
    device = steps.end_s - steps.start_s
    if not (np.all(np.isfinite(durations_s)) and np.all(device > 0) and np.all(durations_s >= device - 1e-9)):
        raise ProblemError("every step must take positive time, and no less with its overhead than without; drop the others")


def _knots(tokens: Float64[Array, " S"], num_knots: int) -> Float64[Array, " K"]:
    """Return 0 and quantiles of the token counts that occur, so that no piece of gemm is without measurements.

    With them come the first powers of two that occur: from one row to a few, matrix products change the most.
    """
    present = np.unique(tokens)
    chosen = np.quantile(present, np.linspace(0, 1, num_knots), method="nearest")
    return np.unique(np.concatenate([[0.0], np.intersect1d(present, _FEW_ROWS), chosen]))


def _measured(steps: Steps, durations_s: Float64[Array, " S"], knots: Float64[Array, " K"]) -> _Measured:
    tokens = (steps.prefill_tokens + steps.decode_sequences).astype(np.float64)
    rise = (tokens[:, None] - knots[:-1]) / np.diff(knots)
    rise[:, :-1] = np.clip(rise[:, :-1], 0.0, 1.0)
    linear = [
        steps.pairs, steps.prefill_context_tokens, steps.kv_tokens, steps.sequences, steps.hidden_tokens,
        np.minimum(steps.hidden_tokens, 1),
    ]  # fmt: skip
    columns = np.concatenate(
        [np.ones((len(tokens), 1)), np.maximum(rise, 0.0), np.stack(linear, axis=1).astype(np.float64)], axis=1
    )
    return _Measured(
        columns, steps.end_s - steps.start_s, np.asarray(durations_s, np.float64), np.maximum(steps.busy_replicas, 1)
    )


def _start(data: _Measured, prior: StepLaw | None, knots: Float64[Array, " K"]) -> Float64[Array, " P"]:
    """Return overhead, floor, coefficients of the columns, and slow-down increments to start from."""
    levels = int(data.busy.max())
    extra = np.zeros(levels - 1)
    if prior is not None:
        slow = [prior.busy_slowdown[min(i, len(prior.busy_slowdown) - 1)] for i in range(levels)]
        gemm = prior.gemm(knots)
        slopes = [getattr(prior, name) for name in _SLOPES]
        return np.concatenate([[prior.overhead_s, prior.floor_s, gemm[0]], np.diff(gemm), slopes, np.diff(slow)])
    rows = data.columns / data.duration_s[:, None]
    norms = np.linalg.norm(rows, axis=0)
    used = norms > 0
    # Bounded and robust already here: one step that waited for the machine must not bend the start.
    found = least_squares(
        lambda x: rows[:, used] / norms[used] @ x - data.device_s / data.duration_s,
        np.full(int(used.sum()), norms.max() / rows.shape[1] / 10),
        bounds=(0, np.inf), loss="soft_l1", f_scale=_OUTLIER,
    )  # fmt: skip
    coefficients = np.zeros(len(norms))
    coefficients[used] = found.x / norms[used]
    overhead = float(np.median(data.duration_s - data.device_s))
    return np.concatenate([[overhead, float(np.min(data.device_s)) / 2], coefficients, extra])


def _predict(
    parameters: Float[jax.Array, " P"], columns: Float[jax.Array, "S K"], busy: Float[jax.Array, "S L"]
) -> tuple[Float[jax.Array, " S"], Float[jax.Array, " S"]]:
    """Return the device time and the whole duration of each step; `busy` marks the slow-down increments that apply."""
    width = columns.shape[1]
    slow = 1.0 + busy @ parameters[2 + width :]
    device = jnp.maximum(parameters[1], columns @ parameters[2 : 2 + width])
    return device * slow, (parameters[0] + device) * slow


def _residuals(
    scaled: Float[jax.Array, " P"],
    scale: Float[jax.Array, " P"],
    start: Float[jax.Array, " P"],
    columns: Float[jax.Array, "S K"],
    busy: Float[jax.Array, "S L"],
    device_s: Float[jax.Array, " S"],
    duration_s: Float[jax.Array, " S"],
    ridge: Float[jax.Array, ""],
) -> Float[jax.Array, " R"]:
    device, duration = _predict(scaled * scale, columns, busy)
    near = ridge * (scaled - start)
    # Both relative to the whole duration, so that their difference identifies the overhead.
    return jnp.concatenate([(duration - duration_s) / duration_s, (device - device_s) / duration_s, near])


_residual_values = jax.jit(_residuals)
_residual_jacobian = jax.jit(jax.jacfwd(_residuals))


def _solve(data: _Measured, start: Float64[Array, " P"], ridge: float) -> Float64[Array, " P"]:
    levels = int(data.busy.max())
    busy = (data.busy[:, None] >= np.arange(2, levels + 1)).astype(np.float64)
    typical = float(np.median(data.duration_s))
    reach = np.maximum(data.columns.max(axis=0), 1e-300)
    size = np.concatenate([[typical, typical], np.where(data.columns.any(axis=0), typical / reach, 1.0), np.ones(levels - 1)])
    # A column that never occurred keeps its start: its scale must not be a made-up one.
    size = np.maximum(np.where(np.concatenate([[1, 1], data.columns.any(axis=0), np.ones(levels - 1)]) > 0, size, start), 1e-30)
    given = (size, start / size, data.columns, busy, data.device_s, data.duration_s, np.float64(ridge))
    # The loss does not feel a floor that lies below every step, so several heights are tried.
    alone = data.device_s[data.busy == data.busy.min()]
    heights = [start[1], *np.quantile(alone, _FLOOR_QUANTILES)]
    attempts = [
        least_squares(
            lambda x: np.asarray(_residual_values(x, *given)),
            np.maximum(np.concatenate([[start[0], height], start[2:]]) / size, 1e-9),
            jac=lambda x: np.asarray(_residual_jacobian(x, *given)),
            bounds=(0, np.inf), loss="soft_l1", f_scale=_OUTLIER, x_scale="jac", max_nfev=200,
        )
        for height in heights
    ]  # fmt: skip
    return np.asarray(min(attempts, key=lambda attempt: attempt.cost).x * size)


def _law(parameters: Float64[Array, " P"], knots: Float64[Array, " K"], prior: StepLaw | None) -> StepLaw:
    gemm, slopes, extra = np.split(parameters[2:], [len(knots), len(knots) + len(_SLOPES)])
    fitted = StepLaw(
        overhead_s=float(parameters[0]),
        floor_s=float(parameters[1]),
        gemm_tokens=tuple(map(float, knots)),
        gemm_s=tuple(map(float, np.cumsum(gemm))),
        **dict(zip(_SLOPES, map(float, slopes), strict=True)),
        busy_slowdown=(1.0, *(1.0 + float(each) for each in np.cumsum(extra))),
    )
    if prior is None:
        return fitted
    energies = ("step_j", "pair_j", "prefill_context_j", "kv_j", "sequence_j", "hidden_j", "hidden_step_j", "idle_w")
    gemm_j = tuple(map(float, prior.gemm_energy(knots)))
    return fitted.replace(gemm_j=gemm_j, **{name: getattr(prior, name) for name in energies})


def _alone_s(law: StepLaw, steps: Steps) -> Float64[Array, " S"]:
    return law.step_s(
        steps.prefill_tokens + steps.decode_sequences, steps.pairs, steps.kv_tokens, steps.sequences, steps.hidden_tokens,
        steps.prefill_context_tokens,
    )  # fmt: skip


def predicted_durations(law: StepLaw, steps: Steps) -> Float64[Array, " S"]:
    """Return what a law predicts for measured steps, overhead and busy slow-down included, in seconds."""
    return np.asarray(_alone_s(law, steps) * factors_at(law.busy_slowdown, steps.busy_replicas - 1))


def _in_the_mean(law: StepLaw, data: _Measured, steps: Steps, train: Int64[Array, " N"]) -> StepLaw:
    """Return the law with its level and slow-downs set so that the total time at each number of busy replicas is right.

    The robust fit finds the shape, but it follows typical steps. Replicas that share cores are held up now and then for a
    whole time slice: that is rare per step and much of the time in all.
    """
    alone = _alone_s(law, steps)[train]
    levels = range(1, int(data.busy.max()) + 1)
    total = [(float(data.duration_s[data.busy == busy].sum()), float(alone[data.busy == busy].sum())) for busy in levels]
    first, slowdown = slowdown_of(total)
    return law.replace(
        overhead_s=law.overhead_s * first,
        floor_s=law.floor_s * first,
        gemm_s=tuple(value * first for value in law.gemm_s),
        **{name: getattr(law, name) * first for name in _SLOPES},
        busy_slowdown=slowdown,
    )


@double_precision
def fit_step_law(
    steps: Steps,
    durations_s: Float64[Array, " S"],
    *,
    prior: StepLaw | None = None,
    num_knots: int = 8,
    heldout_share: float = 0.2,
    ridge: float = 1e-3,
    seed: int = 0,
) -> FitReport:
    """Fit a step law to measured steps by robust non-linear least squares on relative error.

    Parameters
    ----------
    steps
        What each step worked on; `end_s` - `start_s` is the device's part of its time.
    durations_s
        The whole time of each step: until the next one of the same replica could start.
    prior
        A law to start from and lean on where the measurements say nothing (for example hidden cache that never occurred); its
        energy coefficients are kept. None: a non-negative fit without the floor, and no energy.
    num_knots
        Knots of gemm(T) beside 0 and powers of two up to 16, at quantiles of the token counts that occur.
    heldout_share, seed
        Share of the steps that is set aside, at random from the seed, before anything is fitted.
    ridge
        Weight of the pull towards the start, per parameter, in units of relative error.

    Raises
    ------
    ProblemError
        If there are too few steps, or their times are not positive.

    Notes
    -----
    Minimises the soft-L1 loss of the relative errors of duration and device time over non-negative parameters: overhead, floor,
    rises of gemm between knots, p, q, c, b, h, s, and the rises of the slow-down with the number of busy replicas. The Jacobian
    is JAX's. Afterwards level and slow-downs are set so that the total time at each number of busy replicas is right.
    """
    durations_s = np.asarray(durations_s, np.float64)
    _check(steps, durations_s, heldout_share)
    order = np.random.default_rng(seed).permutation(len(durations_s))
    split = max(1, round(heldout_share * len(order)))
    heldout, train = order[:split], order[split:]
    knots = _knots((steps.prefill_tokens + steps.decode_sequences)[train].astype(np.float64), num_knots)
    data = _measured(steps, durations_s, knots).subset(train)
    law = _in_the_mean(_law(_solve(data, _start(data, prior, knots), ridge), knots, prior), data, steps, train)
    errors = np.abs(predicted_durations(law, steps) / durations_s - 1)
    return FitReport(
        law=law,
        train_mape=float(errors[train].mean()),
        heldout_mape=float(errors[heldout].mean()),
        heldout_median=float(np.median(errors[heldout])),
        num_steps=len(durations_s),
        busy_slowdown=law.busy_slowdown,
    )
