"""What the runtime refuses before any process starts."""

from __future__ import annotations

import pytest
from factories import make_plan, make_workload

from optsched.errors import InfeasibleError, SpecError
from optsched.runtime import execute


def test_pools_beyond_this_machine_s_memory_are_refused_before_any_worker_starts() -> None:
    plan = make_plan(["prefill", "decode"], kv_blocks=10**9)
    with pytest.raises(InfeasibleError, match=r"caches and weights take .* GB, this machine has .* GB"):
        execute(plan, make_workload([[(10, 2)]], [0.0]))


def test_weights_of_one_replica_in_another_type_are_refused() -> None:
    plan = make_plan(["prefill", "decode"])
    first, second = plan.replicas
    plan = plan.replace(replicas=(first, second.replace(dtype="fp8")))
    with pytest.raises(SpecError, match=r"has weights in fp8, tiny in .*; the workers of an llm load the same"):
        execute(plan, make_workload([[(10, 2)]], [0.0]))
