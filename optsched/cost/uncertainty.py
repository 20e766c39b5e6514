"""How sure the full model is of a time or an energy: what the covariances of its fitted laws make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float64
from pydantic import ValidationError

from optsched.cost.breakdown import breakdown
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures, spread
from optsched.cost.operations import DecodeAttention, Elementwise, Experts, Gemm, Operation, PrefillAttention
from optsched.cost.precision import double_precision
from optsched.cost.samples import joined
from optsched.cost.shape import LlmShape
from optsched.cost.tables import replica_parameters
from optsched.cost.tier import TierParameters, link_of
from optsched.cost.transformer import compute_operations
from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.domain.hardware import Gpu, Link, Tier
from optsched.domain.llm import Llm

Array = np.ndarray
Path = tuple[str, ...]
FAMILIES: dict[type[Operation], str] = {
    Gemm: "gemm",
    PrefillAttention: "prefill_attention",
    DecodeAttention: "decode_attention",
    Experts: "experts",
    Elementwise: "elementwise",
}
COLLECTIVES = "collectives"
_KNOWN = (*FAMILIES.values(), COLLECTIVES)
_NUDGE = 1e-4  # of the logarithm of a coefficient; central differences are then right to about eight digits
_MOST_STEPS = 256  # a prefill of more chunks is represented by so many of them: their costs change evenly
_MOST_SHARES = 5


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Errors of the total time and energy of some steps.

    Attributes
    ----------
    standard_error_s, standard_error_j
        By the covariance of the fitted coefficients alone; None if no law in use keeps one.
    model_error
        Mean error of the laws on held-out measurements, each weighted by its family's share of the time, as a share of the
        whole time: as if the families erred in the same direction. None if no law in use has been held against any.
    unknown
        Families that take part of the time and whose laws have been held against no measurements of others; empty if no law
        was fitted at all.
    """

    standard_error_s: float | None
    standard_error_j: float | None
    model_error: float | None
    unknown: tuple[str, ...]


def _fits(record: object, path: Path = ()) -> Iterator[tuple[Path, Fit]]:
    """Yield the place of every law below a record that keeps the covariance of a fit."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from _fits(value, (*path, key))
    elif isinstance(record, Frozen):
        fit = getattr(record, "fit", None)
        if isinstance(fit, Fit) and fit.parameters:
            yield path, fit
        for name in type(record).model_fields:
            yield from _fits(getattr(record, name), (*path, name))


def _scaled(record: object, path: Path, factors: dict[str, float]) -> object:
    """Return a record in which some coefficients of the law at a place are multiplied, rules of the records aside."""
    if isinstance(record, dict):
        return {**record, path[0]: _scaled(record[path[0]], path[1:], factors)}
    if not isinstance(record, Frozen):
        raise TypeError(f"{type(record).__name__} is no record")
    if path:
        return record.model_copy(update={path[0]: _scaled(getattr(record, path[0]), path[1:], factors)})
    return record.model_copy(update={name: getattr(record, name) * factor for name, factor in factors.items()})


@dataclass(frozen=True, slots=True)
class _Replica:
    """A replica whose files can be changed and put together to the numbers of a tier again."""

    llm: Llm
    tier: Tier
    tp: int
    pp: int
    link: Link | None
    expert_parallel: bool

    def parameters(self, path: Path, factors: dict[str, float]) -> TierParameters | None:
        """Return the tier's numbers with some coefficients multiplied; None where a rule of the records forbids it."""
        gpu, link = self.tier.gpu, self.link
        try:
            if path[0] == "gpu":
                changed = _scaled(gpu, path[1:], factors)
                gpu = changed if isinstance(changed, Gpu) else gpu
            else:
                other = _scaled(link, path[1:], factors)
                link = other if isinstance(other, Link) else link
            tier = Tier(gpu, self.tier.power_cap_w, self.tier.engine)
            return replica_parameters(self.llm, tier, tp=self.tp, pp=self.pp, link=link, expert_parallel=self.expert_parallel)[0]
        except ValidationError:
            return None

    def fitted(self, plain: TierParameters) -> list[tuple[Path, Fit]]:
        """Return the fitted laws that the tier's numbers depend on."""
        places = [(("gpu", *path), fit) for path, fit in _fits(self.tier.gpu)]
        places += [(("link", *path), fit) for path, fit in _fits(self.link)]
        return [(path, fit) for path, fit in places if self._matters(path, fit, plain)]

    def _matters(self, path: Path, fit: Fit, plain: TierParameters) -> bool:
        moved = self.parameters(path, dict.fromkeys(fit.parameters, 1.0 - _NUDGE))
        return moved is None or any(
            float(one) != float(two) for one, two in zip(jax.tree.leaves(moved), jax.tree.leaves(plain), strict=True)
        )


class _Totals:
    """Total seconds and joules of several sets of steps, as a function of a tier's numbers."""

    def __init__(self, shape: LlmShape, sets: Sequence[StepFeatures]) -> None:
        rows = [spread(features, _MOST_STEPS) for features in sets]
        self._shape, self._steps = shape, joined(rows)
        self._starts = np.cumsum([0, *(len(np.asarray(each.pairs)) for each in rows[:-1])])

    def log_of(self, parameters: TierParameters) -> Float64[Array, "sets 2"]:
        """Return the logarithms of both totals of each set."""
        costs = evaluate_steps(parameters, self._shape, self._steps)
        totals = [np.add.reduceat(each, self._starts) for each in (costs.seconds, costs.joules)]
        return np.asarray(np.log(np.stack(totals, axis=1)))

    def slopes(self, replica: _Replica, path: Path, fit: Fit, plain: TierParameters) -> Float64[Array, "P sets 2"]:
        """Return the derivatives of these logarithms with respect to those of a law's coefficients."""
        rows = []
        for name in fit.parameters:
            moved = [(replica.parameters(path, {name: math.exp(step)}), step) for step in (_NUDGE, -_NUDGE)]
            ends = [(plain, 0.0) if each is None else (each, step) for each, step in moved]
            (above, up), (below, down) = ends
            rows.append((self.log_of(above) - self.log_of(below)) / max(up - down, _NUDGE))
        return np.stack(rows)


def _family_shares(parameters: TierParameters, shape: LlmShape, features: StepFeatures) -> dict[str, float]:
    """Return the share of the time that each family of operations takes; the rest is overhead."""
    some = spread(features, _MOST_SHARES)
    operations = jax.eval_shape(compute_operations, shape, some.row(0))
    family_of = {name.replace("_", " "): FAMILIES[type(operation)] for name, operation in operations.items()}
    shares = dict.fromkeys(_KNOWN, 0.0)
    total = 0.0
    for index in range(len(np.asarray(some.pairs))):
        for row in breakdown(parameters, shape, some.row(index)):
            total += row.seconds
            family = COLLECTIVES if row.resource == "link" else family_of.get(row.name)
            if family is not None:
                shares[family] += row.seconds
    return {name: seconds / total for name, seconds in shares.items() if seconds > 0}


def _heldout(fitted: list[tuple[Path, Fit]]) -> dict[str, float]:
    """Return the larger held-out error of each family's laws."""
    errors: dict[str, float] = {}
    for path, fit in fitted:
        family = next((part for part in path if part in _KNOWN), path[-1])
        for error in (fit.heldout_shapes_mape, fit.heldout_llms_mape):
            if error is not None:
                errors[family] = max(error, errors.get(family, 0.0))
    return errors


@double_precision
def uncertainties(
    llm: Llm,
    tier: Tier,
    steps: Sequence[StepFeatures],
    *,
    tp: int = 1,
    pp: int = 1,
    link: Link | None = None,
    expert_parallel: bool = False,
) -> list[Uncertainty]:
    """Return the errors of total time and energy of several sets of steps of one replica.

    Parameters
    ----------
    llm, tier, tp, pp, link, expert_parallel
        The replica, as in `optsched.cost.tables.step_law`.
    steps
        One step, or many, each.

    Notes
    -----
    Delta method: with g the gradient of the total with respect to the logarithms of a law's coefficients and S their
    covariance, the variance is the sum of ``g S g^T`` over the fitted laws that the replica uses; fits of different laws are
    independent. The gradient is taken by central differences through the records, so that it holds whatever way a law finds
    into the tier's numbers; the model compiled once serves them all, while compiling its derivative takes longer than all
    of them. The variance tells how well the measurements pin the coefficients down, not how well a law with the best
    coefficients describes a card: that is `Uncertainty.model_error`, and usually larger.
    """
    plain, shape = replica_parameters(llm, tier, tp=tp, pp=pp, link=link, expert_parallel=expert_parallel)
    replica = _Replica(llm, tier, tp, pp, link_of(tier, link, tp * pp), expert_parallel)
    fitted = replica.fitted(plain)
    if not fitted:
        return [Uncertainty(None, None, None, ()) for _ in steps]
    totals, errors = _Totals(shape, steps), _heldout(fitted)
    variance = np.zeros((len(steps), 2))
    for path, fit in fitted:
        slopes = totals.slopes(replica, path, fit, plain)
        variance += np.einsum("pso,pq,qso->so", slopes, np.asarray(fit.covariance), slopes)
    found = []
    for index, features in enumerate(steps):
        costs = evaluate_steps(plain, shape, features.rows())
        shares = _family_shares(plain, shape, features)
        erring = [share * errors[name] for name, share in shares.items() if name in errors]
        found.append(
            Uncertainty(
                standard_error_s=float(costs.seconds.sum() * np.sqrt(variance[index, 0])),
                standard_error_j=float(costs.joules.sum() * np.sqrt(variance[index, 1])),
                model_error=sum(erring) if erring else None,
                unknown=tuple(name for name in shares if name not in errors),
            )
        )
    return found
