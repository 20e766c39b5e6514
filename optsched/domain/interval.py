"""The confidence interval of a mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of a sample and the confidence interval of that mean, by Student's t.

    Parameters
    ----------
    values
        One figure per seed; at least one.
    confidence
        In (0, 1).

    Returns
    -------
    tuple
        Mean, lower and upper end; from minus to plus infinity for a single value.
    """
    from scipy.stats import t  # half a second that most commands need not wait for

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, -inf, inf
    half = float(t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) / sqrt(count))
    return mean, mean - half, mean + half
