"""A simulated server against a real one that took no part in any fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optsched.errors import SpecError
from optsched.profiles.vllm_run import read_vllm_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


def test_a_real_vllm_run_is_foreseen_within_five_percent(third_party_data: Path) -> None:
    from accuracy_engine import RUN, errors, replay

    run, (log, workload) = read_vllm_run(third_party_data / RUN), replay(third_party_data / RUN)
    found = errors(run, log, workload)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert abs(found[name, "mean"]) <= 0.05
        assert abs(found[name, "p95"]) <= 0.10
    assert log.makespan_s == pytest.approx(run.makespan_s, rel=0.02)


def test_a_folder_that_holds_no_run_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"give the folder of one run, with requests\.jsonl and timeseries\.csv"):
        read_vllm_run(tmp_path)
