"""A log survives the way to disk and back; a damaged one is refused in one line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from factories import make_plan, make_workload

from optsched import logfile
from optsched.domain.log import Event
from optsched.errors import SpecError
from optsched.logfile import load_log, save_log
from optsched.simulator.simulate import simulate

WORKLOAD = make_workload([[(300, 10), (8, 5)], [(500, 1), (8, 3)]], [0.0, 0.01])


def _equal(first: object, second: object) -> bool:
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if dataclasses.is_dataclass(a):
            same = _equal(a, b)
        elif isinstance(a, np.ndarray):
            same = np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype
        else:
            same = a == b
        if not same:
            return False
    return True


@pytest.mark.parametrize("roles", [["prefill", "decode"], ["mixed"]])
def test_reading_what_was_written_gives_the_same_log(tmp_path, roles):
    plan = make_plan(roles, policy="conserve" if len(roles) > 1 else "collocated")
    log = dataclasses.replace(
        simulate(plan, WORKLOAD, seed=7), events=(Event(1.5, "recovered", 1, 0, "why"),), metadata={"a": "b"}
    )
    save_log(log, WORKLOAD, tmp_path / "log.parquet", plan)
    again, its_plan = load_log(tmp_path / "log.parquet")
    assert _equal(log, again)
    assert its_plan == plan


def test_a_log_of_an_earlier_version_has_no_context_read_by_prefills(tmp_path, monkeypatch):
    log = simulate(make_plan(["mixed"], policy="collocated"), WORKLOAD)
    fewer = tuple(name for name in logfile._STEP_FIELDS if name != "prefill_context_tokens")
    with monkeypatch.context() as patch:
        patch.setattr(logfile, "_STEP_FIELDS", fewer)
        save_log(log, WORKLOAD, tmp_path / "log.parquet")
    again, _ = load_log(tmp_path / "log.parquet")
    assert np.array_equal(again.steps.prefill_context_tokens, np.zeros(log.iterations, np.int64))
    assert np.array_equal(again.steps.pairs, log.steps.pairs)
    assert again.violations(WORKLOAD) == []


def test_a_log_without_energy_or_plan_keeps_both_absent(tmp_path):
    log = dataclasses.replace(simulate(make_plan(["mixed"], policy="collocated"), WORKLOAD), dynamic_j=None)
    save_log(log, WORKLOAD, tmp_path / "log.parquet")
    again, plan = load_log(tmp_path / "log.parquet")
    assert again.dynamic_j is None
    assert plan is None


def test_an_absent_log_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"log\.parquet: no such file"):
        load_log(tmp_path / "log.parquet")


def test_a_truncated_log_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    save_log(simulate(make_plan(["mixed"], policy="collocated"), WORKLOAD), WORKLOAD, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SpecError, match="not a whole Parquet file"):
        load_log(path)


def test_another_parquet_file_is_refused(tmp_path):
    import polars as pl

    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(SpecError, match="no optsched log"):
        load_log(tmp_path / "log.parquet")
