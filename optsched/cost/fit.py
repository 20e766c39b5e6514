"""Fit the coefficients of a law to measured rows, leaning on a prior, and say how well it predicts rows it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Float64, PyTree
from scipy.optimize import least_squares

from optsched.cost.precision import double_precision, scalar
from optsched.cost.roofline import LawParameters
from optsched.cost.split import Split
from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.errors import ProblemError

Array = np.ndarray
RecordT = TypeVar("RecordT", bound=Frozen)
ParametersT = TypeVar("ParametersT", bound=LawParameters)
_REACH = 12.0  # a coefficient moves by at most e^12 from its prior


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the rows of a fit come from: what `Fit` keeps of it."""

    source: str
    date: str
    rows_left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Fitted(Generic[RecordT]):
    """A fitted law and what it predicts.

    Attributes
    ----------
    law
        The record, with its `Fit`.
    predicted_s
        Of every row, held-out ones included.
    errors
        Absolute relative errors ``|predicted / measured - 1|`` of every row.
    """

    law: RecordT
    predicted_s: Float64[Array, " S"]
    errors: Float64[Array, " S"]

    @property
    def fit(self) -> Fit:
        """What the record says of the fit."""
        fit: Fit = getattr(self.law, "fit")  # noqa: B009 - laws share the field, not a base class
        return fit


def _bounds(record: type[Frozen], names: tuple[str, ...], start: Float64[Array, " P"]) -> tuple[Array, Array]:
    """Return the range of each coefficient's logarithm relative to its start, from the rules of the record."""
    low, high = np.full(len(names), -_REACH), np.full(len(names), _REACH)
    for index, name in enumerate(names):
        for rule in record.model_fields[name].metadata:
            if isinstance(rule, Le) and isinstance(rule.le, (int, float)):
                high[index] = min(high[index], np.log(rule.le / start[index]))
            least = rule.gt if isinstance(rule, Gt) else rule.ge if isinstance(rule, Ge) else 0
            if isinstance(least, (int, float)) and least > 0:
                low[index] = max(low[index], np.log(least / start[index]))
    return np.minimum(low, 0.0), np.maximum(high, 0.0)


class _Task(eqx.Module, Generic[ParametersT]):
    """What the residuals of a fit depend on beside the coefficients; compiled once per law, prediction and number of rows."""

    start_law: ParametersT
    rows: PyTree
    seconds: Float[jax.Array, " S"]
    root_weights: Float[jax.Array, " S"]
    ridge: Float[jax.Array, ""]
    outlier: Float[jax.Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)
    predict: Callable[[ParametersT, PyTree], Float[jax.Array, " S"]] = eqx.field(static=True)

    def log_ratio(self, x: Float[jax.Array, " P"]) -> Float[jax.Array, " S"]:
        """Return the logarithm of predicted over measured times, the coefficients scaled by ``exp(x)``."""
        law = self.start_law
        for index, name in enumerate(self.names):
            law = eqx.tree_at(attrgetter(name), law, getattr(law, name) * jnp.exp(x[index]))
        return jnp.log(self.predict(law, self.rows) / self.seconds)

    def residuals(self, x: Float[jax.Array, " P"]) -> Float[jax.Array, " R"]:
        """Return residuals of the rows and of the pull towards the prior."""
        return jnp.concatenate([self.root_weights * _robust(self.log_ratio(x), self.outlier), self.ridge * x])


@jax.jit
def _log_ratio(task: _Task[ParametersT], x: Float[jax.Array, " P"]) -> Float[jax.Array, " S"]:
    return task.log_ratio(x)


@jax.jit
def _residuals(task: _Task[ParametersT], x: Float[jax.Array, " P"]) -> Float[jax.Array, " R"]:
    return task.residuals(x)


@jax.jit
def _jacobian(task: _Task[ParametersT], x: Float[jax.Array, " P"]) -> Float[jax.Array, "R P"]:
    jacobian: Float[jax.Array, "R P"] = jax.jacfwd(task.residuals)(x)
    return jacobian


def _robust(residual: Float[jax.Array, " S"], scale: Float[jax.Array, ""]) -> Float[jax.Array, " S"]:
    """Return residuals whose squares are the soft-L1 loss of the given ones, twice differentiable at 0."""
    return residual * jnp.sqrt(2.0 / (1.0 + jnp.sqrt(1.0 + (residual / scale) ** 2)))


def _check(seconds: Float64[Array, " S"], rows: PyTree, split: Split, num_parameters: int) -> None:
    lengths = {len(np.asarray(leaf)) for leaf in jax.tree.leaves(rows)} | {len(split.train)}
    if lengths != {len(seconds)}:
        raise ProblemError(f"{len(seconds)} measured times for rows of lengths {sorted(lengths)}; give one time per row")
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise ProblemError("every measured time must be positive and finite; drop the other rows and count them")
    if (count := int(split.train.sum())) < max(2 * num_parameters, 1):
        raise ProblemError(
            f"{count} rows to fit {num_parameters} coefficients to, held-out ones aside; give at least {2 * num_parameters}"
        )


@double_precision
def fit_law(
    prior: RecordT,
    parameters: type[ParametersT],
    predict: Callable[[ParametersT, PyTree], Float[jax.Array, " S"]],
    rows: PyTree,
    seconds: Float64[Array, " S"],
    split: Split,
    provenance: Provenance,
    *,
    fixed: tuple[str, ...] = (),
    ridge: float = 0.1,
    outlier: float = 0.1,
    weights: Float64[Array, " S"] | None = None,
) -> Fitted[RecordT]:
    """Fit a law by robust non-linear least squares on the logarithms of its coefficients and of the times.

    Parameters
    ----------
    prior
        The record to start from and to lean on, with plausible coefficients.
    parameters
        The law's module of scalars; its fields are the coefficients that are fitted, as far as they are positive.
    predict
        ``predict(law, rows) -> seconds`` of each row, made of JAX functions.
    rows
        Arrays with the shapes of S rows along their first axis; any structure.
    seconds
        Measured time of each row.
    split
        Which rows are fitted to, and which are only predicted.
    provenance
        What the record keeps of where the rows come from.
    fixed
        Coefficients that stay at the prior.
    ridge
        Pull towards the prior: what a change of a coefficient by a factor e costs, in units of relative error of a single row.
    outlier
        Relative error beyond which a row counts linearly, not quadratically (soft L1).
    weights
        Weight of each row; None: all alike.

    Returns
    -------
    Fitted
        The record with the fitted coefficients and its `Fit`.

    Raises
    ------
    ProblemError
        If lengths differ, a time is not positive, or too few rows are left to fit to.

    Notes
    -----
    Minimises ``sum_i w_i soft_l1(log(predicted_i / measured_i)) + ridge^2 |log(theta / prior)|^2`` over training rows within
    the bounds of the record's fields; the Jacobian is JAX's. The covariance of the log-coefficients is
    ``s^2 (J^T J + ridge^2 I)^-1`` with s^2 the mean squared residual. Held-out rows enter the errors alone.
    """
    names = tuple(field.name for field in fields(parameters) if field.name not in fixed and float(getattr(prior, field.name)) > 0)
    seconds = np.asarray(seconds, np.float64)
    _check(seconds, rows, split, len(names))
    start = np.array([float(getattr(prior, name)) for name in names])
    root = np.ones(len(seconds)) if weights is None else np.sqrt(np.asarray(weights, np.float64))
    whole = _Task(
        parameters.of(prior), rows, jnp.asarray(seconds), jnp.asarray(root), scalar(ridge), scalar(outlier),
        names=names, predict=predict,
    )  # fmt: skip
    task = _chosen(whole, split.train)
    solution = least_squares(
        lambda x: np.asarray(_residuals(task, x)),
        np.zeros(len(names)),
        jac=lambda x: np.asarray(_jacobian(task, x)),
        bounds=_bounds(type(prior), names, start),
        max_nfev=500,
    )
    predicted = np.exp(np.asarray(_log_ratio(whole, solution.x))) * seconds
    errors = np.abs(predicted / seconds - 1)
    # The Jacobian's last rows are the ridge, so J^T J contains it.
    variance = float(np.mean(solution.fun[: -len(names)] ** 2))
    covariance = np.linalg.inv(solution.jac.T @ solution.jac) * variance
    value = {name: float(start[index] * np.exp(solution.x[index])) for index, name in enumerate(names)}
    fit = _record(names, covariance, errors, split, provenance)
    return Fitted(prior.replace(**value, fit=fit), predicted, errors)


def _chosen(task: _Task[ParametersT], mask: Bool[Array, " S"]) -> _Task[ParametersT]:
    per_row = (task.rows, task.seconds, task.root_weights)
    kept = jax.tree.map(lambda leaf: np.asarray(leaf)[mask], per_row)
    chosen: _Task[ParametersT] = eqx.tree_at(lambda each: (each.rows, each.seconds, each.root_weights), task, kept)
    return chosen


def _record(
    names: tuple[str, ...],
    covariance: Float64[Array, "P P"],
    errors: Float64[Array, " S"],
    split: Split,
    provenance: Provenance,
) -> Fit:
    def mean(mask: Bool[Array, " S"]) -> float | None:
        return float(errors[mask].mean()) if mask.any() else None

    return Fit(
        source=provenance.source,
        date=provenance.date,
        num_rows=len(errors),
        rows_left_out=dict(provenance.rows_left_out),
        train_mape=float(errors[split.train].mean()),
        heldout_shapes_mape=mean(split.heldout_shapes),
        heldout_llms_mape=mean(split.heldout_llms),
        parameters=names,
        covariance=tuple(tuple(map(float, row)) for row in covariance),
    )
