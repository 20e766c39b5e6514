"""Fit coefficients of a tier to durations and powers of whole steps, leaning on a prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import least_squares

from optsched.cost.evaluate import stack
from optsched.cost.features import StepFeatures
from optsched.cost.precision import double_precision
from optsched.cost.shape import LlmShape
from optsched.cost.step import step_cost
from optsched.cost.tier import TierParameters
from optsched.errors import ProblemError

Array = np.ndarray
_REACH = 5.0  # a coefficient moves by at most e^5 from its prior unless its range says less


@dataclass(frozen=True, slots=True)
class StepCase:
    """Steps that were measured together, such as the chunks of a prompt, or a prefill and the decode steps after it.

    Attributes
    ----------
    tier, shape
        The replica.
    steps
        Its steps, arrays of length S.
    repeats
        How often each occurs.
    seconds, watts
        Measured: duration of all together, and mean power of one GPU; None where not measured.
    """

    tier: TierParameters
    shape: LlmShape
    steps: StepFeatures
    repeats: Float64[Array, " S"]
    seconds: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Free:
    """A coefficient to fit.

    Attributes
    ----------
    prior
        Value to start from and to lean on.
    reach
        Standard deviation of its logarithm around the prior.
    low, high
        Range.
    """

    prior: float
    reach: float = 0.5
    low: float = 0.0
    high: float = np.inf


@dataclass(frozen=True, slots=True)
class FittedSteps:
    """Fitted coefficients and what they predict.

    Attributes
    ----------
    values
        By name.
    covariance
        Of their logarithms, in the order of `values`.
    seconds, watts
        Predicted for every case, those set aside included.
    """

    values: dict[str, float]
    covariance: Float64[Array, "P P"]
    seconds: Float64[Array, " C"]
    watts: Float64[Array, " C"]


class _Stacked(eqx.Module):
    """All steps of all cases one after the other, each with the number of its case."""

    tiers: TierParameters
    shapes: LlmShape
    steps: StepFeatures
    repeats: Float[jax.Array, " S"]
    case: Float[jax.Array, " S"]
    num_cases: int = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def predicted(self, logarithms: Float[jax.Array, " P"]) -> tuple[Float[jax.Array, " C"], Float[jax.Array, " C"]]:
        """Return the seconds of each case and the mean power of one GPU."""

        def one(tier: TierParameters, shape: LlmShape, step: StepFeatures) -> tuple[jax.Array, jax.Array]:
            for index, name in enumerate(self.names):
                tier = eqx.tree_at(attrgetter(name), tier, jnp.exp(logarithms[index]))
            cost = step_cost(tier, shape, step)
            return cost.seconds, cost.joules / (shape.tp * shape.pp)

        seconds, joules = jax.vmap(one)(self.tiers, self.shapes, self.steps)
        total_s, total_j = (
            jax.ops.segment_sum(self.repeats * each, self.case.astype(int), self.num_cases) for each in (seconds, joules)
        )
        return total_s, total_j / total_s


def _stacked(cases: Sequence[StepCase], names: tuple[str, ...]) -> _Stacked:
    lengths = [len(np.asarray(case.steps.pairs)) for case in cases]
    number: Int64[Array, " S"] = np.repeat(np.arange(len(cases)), lengths)
    steps = [case.steps.row(index) for case, length in zip(cases, lengths, strict=True) for index in range(length)]
    return _Stacked(
        stack([cases[index].tier for index in number]),
        stack([cases[index].shape for index in number]),
        stack(steps),
        jnp.asarray(np.concatenate([case.repeats for case in cases])),
        jnp.asarray(number, float),
        len(cases),
        names,
    )


_Predicted = tuple[Float[jax.Array, " C"], Float[jax.Array, " C"]]


class _Task(eqx.Module):
    """Residuals: relative errors of times and powers over what is expected of them, and the pull towards the prior."""

    stacked: _Stacked
    seconds: Float[jax.Array, " C"]
    watts: Float[jax.Array, " C"]
    seconds_weight: Float[jax.Array, " C"]
    watts_weight: Float[jax.Array, " C"]
    prior: Float[jax.Array, " P"]
    reach: Float[jax.Array, " P"]

    def residuals(self, logarithms: Float[jax.Array, " P"]) -> tuple[Float[jax.Array, " R"], _Predicted]:
        """Return all residuals, those of weight 0 as 0, and the seconds and watts that they compare."""
        seconds, watts = self.stacked.predicted(logarithms)
        residuals = jnp.concatenate(
            [
                self.seconds_weight * jnp.log(seconds / self.seconds),
                self.watts_weight * jnp.log(watts / self.watts),
                (logarithms - self.prior) / self.reach,
            ]
        )
        return residuals, (seconds, watts)


@jax.jit
def _linearised(task: _Task, x: Float[jax.Array, " P"]) -> tuple[jax.Array, jax.Array, _Predicted]:
    """Return residuals, their Jacobian, and what is predicted, in one pass that is compiled once."""

    def twice(each: Float[jax.Array, " P"]) -> tuple[jax.Array, tuple[jax.Array, _Predicted]]:
        residuals, predicted = task.residuals(each)
        return residuals, (residuals, predicted)

    jacobian, (residuals, predicted) = jax.jacfwd(twice, has_aux=True)(x)
    return residuals, jacobian, predicted


def _measured(
    values: Sequence[float | None], train: Bool[Array, " C"], error: float | Float64[Array, " C"]
) -> tuple[Array, Array]:
    """Return measured values, 1 where there are none, and their weights."""
    present = np.array([value is not None for value in values])
    return np.array([1.0 if value is None else value for value in values]), (present & train) / error


@double_precision
def fit_steps(
    cases: Sequence[StepCase],
    free: Mapping[str, Free],
    train: Bool[Array, " C"],
    *,
    seconds_error: float | Float64[Array, " C"] = 0.03,
    watts_error: float | Float64[Array, " C"] = 0.03,
) -> FittedSteps:
    """Fit coefficients shared by all cases by non-linear least squares on relative errors.

    Parameters
    ----------
    cases
        What was measured.
    free
        Coefficients by dotted name in `TierParameters`; all cases share them. The others stay as each case's tier has them.
    train
        Cases to fit to; the others are only predicted.
    seconds_error, watts_error
        Relative errors expected of times and powers, of each case or of all: what the prior is weighed against.

    Raises
    ------
    ProblemError
        If no case is left to fit to.

    Notes
    -----
    Minimises ``sum (log(t/t') / e_t)^2 + sum (log(w/w') / e_w)^2 + sum (log(theta/prior) / reach)^2`` with JAX's Jacobian; the
    covariance is ``(J^T J)^-1``.
    """
    train = np.asarray(train, bool)
    if not train.any():
        raise ProblemError("no case is left to fit to; give measured steps, or hold fewer out")
    names = tuple(free)
    prior = np.log([free[name].prior for name in names])
    seconds, seconds_weight = _measured([case.seconds for case in cases], train, seconds_error)
    watts, watts_weight = _measured([case.watts for case in cases], train, watts_error)
    arrays = (seconds, watts, seconds_weight, watts_weight, prior, np.array([free[name].reach for name in names]))
    task = _Task(_stacked(cases, names), *map(jnp.asarray, arrays))
    with np.errstate(divide="ignore"):
        low = np.maximum(np.log([free[name].low for name in names]), prior - _REACH)
        high = np.minimum(np.log([free[name].high for name in names]), prior + _REACH)
    last: dict[bytes, tuple[jax.Array, jax.Array, _Predicted]] = {}

    def at(x: Float64[Array, " P"]) -> tuple[jax.Array, jax.Array, _Predicted]:
        # The solver asks for residuals and Jacobian of the same point in turn.
        if x.tobytes() not in last:
            last.clear()
            last[x.tobytes()] = _linearised(task, jnp.asarray(x))
        return last[x.tobytes()]

    found = least_squares(
        lambda x: np.asarray(at(x)[0]),
        np.clip(prior, low + 1e-9, high - 1e-9),
        jac=lambda x: np.asarray(at(x)[1]),
        bounds=(low, high),
        x_scale="jac",
    )
    _, jacobian, predicted = at(found.x)
    total_s, mean_w = map(np.asarray, predicted)
    values = dict(zip(names, map(float, np.exp(found.x)), strict=True))
    return FittedSteps(values, np.linalg.inv(np.asarray(jacobian).T @ np.asarray(jacobian)), total_s, mean_w)
