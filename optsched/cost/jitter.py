"""How measured steps of a shared host scatter about what their law says: neighbours take a core for a time slice now and then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from optsched.cost.calibrate import FitReport, fit_step_law, predicted_durations
from optsched.domain.log import Steps
from optsched.domain.step_law import JITTER_QUANTILES, StepLaw

Array = np.ndarray
_FEWEST = 2 * JITTER_QUANTILES
_NEGLIGIBLE = 0.01


def fit_shared_law(steps: Steps, durations_s: Float64[Array, " S"], *, prior: StepLaw | None = None, seed: int = 0) -> FitReport:
    """Do as `fit_step_law` for replicas that share a host: the law knows how their times scatter, too."""
    report = fit_step_law(steps, durations_s, prior=prior, seed=seed)
    return replace(report, law=with_jitter(report.law, steps, durations_s))


def with_jitter(law: StepLaw, steps: Steps, durations_s: Float64[Array, " S"]) -> StepLaw:
    """Return a law that knows how the times of the steps scatter, too: by kind of step and number of busy replicas.

    Of a kind and number with fewer than 40 steps, those with any number of busy replicas are taken together, or all steps of
    both kinds. What the law's shape misses counts as scatter, too. A kind that scatters by less than 1 % is given none.

    Parameters
    ----------
    law
        The fit.
    steps, durations_s
        What it was fitted to, or more of the same, and the whole time of each.
    """
    ratio = np.asarray(durations_s, np.float64) / predicted_durations(law, steps)
    prefills = steps.prefill_tokens > 0
    busy = np.clip(steps.busy_replicas, 1, len(law.busy_slowdown))
    found: list[tuple[tuple[float, ...], ...]] = []
    for kind in (~prefills, prefills):
        rows = []
        for level in range(1, len(law.busy_slowdown) + 1):
            choices = (kind & (busy == level), kind)
            chosen = next((each for each in choices if each.sum() >= _FEWEST), np.ones_like(kind))
            rows.append(_factors(ratio[chosen]))
        scatter = max(row[-1] - row[0] for row in rows)
        found.append(tuple(rows) if scatter >= _NEGLIGIBLE else ())
    return law.replace(decode_jitter=found[0], prefill_jitter=found[1])


def _factors(ratio: Float64[Array, " n"]) -> tuple[float, ...]:
    quantiles = np.quantile(ratio, (np.arange(JITTER_QUANTILES) + 0.5) / JITTER_QUANTILES)
    return tuple(round(float(value), 4) for value in quantiles / quantiles.mean())
