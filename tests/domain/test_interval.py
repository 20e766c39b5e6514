from math import inf

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from optsched.domain.interval import mean_interval


def test_the_interval_is_that_of_scipys_one_sample_test() -> None:
    values = [1.2, 0.9, 1.4, 1.1, 1.05]
    mean, low, high = mean_interval(values)
    theirs = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((theirs.low, theirs.high))


def test_more_confidence_widens_and_one_value_says_nothing() -> None:
    values = [3.0, 4.0, 5.0]
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide[1] < narrow[1] < narrow[2] < wide[2]
    assert mean_interval([2.5]) == (2.5, -inf, inf)
