"""Latency alone, turn by turn and for all turns together."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload


@settings(max_examples=60)
@given(workloads(), st.sampled_from([64, 512, 4096]), st.sampled_from([0.0, 1.0, 30.0]), st.sampled_from([0.0, 1.0]))
def test_all_turns_together_take_what_each_takes_alone(workload: Workload, chunk: int, floor: float, cache: float) -> None:
    law = LAW.replace(floor_s=floor * LAW.floor_s, kv_s=cache * LAW.kv_s)
    found = standalone_latency(workload, law, chunk)
    carried = (workload.turn_in_conversation > 0).astype(int)
    for turn in range(workload.num_turns):
        new, cached = int(workload.new_tokens[turn] + carried[turn]), int(workload.context_before[turn] - carried[turn])
        steps = int(workload.output_tokens[turn]) - 1
        assert found.ttft_s[turn] == pytest.approx(law.prefill_s(new, cached, chunk), rel=1e-12)
        if steps:
            assert found.tpot_s[turn] * steps == pytest.approx(law.decode_s(cached + new, steps), rel=1e-9)
        else:
            assert np.isnan(found.tpot_s[turn])
