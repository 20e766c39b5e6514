"""What a log tells of its steps."""

from __future__ import annotations

import numpy as np

from optsched.domain.log import Steps


def test_busy_replicas_at_a_time_are_those_whose_step_covers_it() -> None:
    draw = np.random.default_rng(5)
    start_s = np.round(draw.uniform(0, 10, 60), 1)
    columns = {name: np.zeros(60, np.int64) for name in Steps.__dataclass_fields__}
    steps = Steps(**{**columns, "replica": draw.integers(0, 4, 60), "start_s": start_s, "end_s": start_s + 0.7})
    times_s = np.round(draw.uniform(0, 11, 40), 1)
    among = [0, 2, 3]
    covered = (start_s <= times_s[:, None]) & (times_s[:, None] < steps.end_s) & np.isin(steps.replica, among)
    assert steps.busy_at(times_s, among).tolist() == covered.sum(axis=1).tolist()
