"""The data type of weights as a choice: what it changes of a replica, and who may choose."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.cli.capacity_answer import entry_json, in_words
from optsched.domain.scenario import CurrentFleet, FleetEntry, Supply
from optsched.errors import SpecError
from optsched.planner.capacity import capacity
from optsched.planner.capacity_types import label, present_counts, replica_types
from optsched.planner.plan import plan_scenario
from optsched.planner.replicas import make_replica

CHAT = catalog.scenario("chat-l4")
LLAMA = catalog.llm("llama-3.1-8b")
EITHER = CHAT.replace(fleet=(), supply={"l4": Supply(max=4, dtypes=("bf16", "fp8"))})


def test_narrow_weights_leave_room_for_cache_of_the_same_kind_and_shorten_decode_steps() -> None:
    wide, narrow = (make_replica(LLAMA, FleetEntry(gpu="l4", role="mixed", dtype=dtype), "r", 16) for dtype in ("bf16", "fp8"))
    assert (wide.dtype, narrow.dtype) == (None, "fp8")
    assert LLAMA.with_weights("fp8").kv_bytes_per_token == LLAMA.kv_bytes_per_token
    saved = LLAMA.weights_bytes - LLAMA.with_weights("fp8").weights_bytes
    assert (narrow.kv_blocks - wide.kv_blocks) * 16 * LLAMA.kv_bytes_per_token == pytest.approx(saved, rel=1e-3)
    assert narrow.coefficients.gemm_s[0] < 0.7 * wide.coefficients.gemm_s[0]


def test_every_type_of_weights_is_a_type_of_replica() -> None:
    types, _ = replica_types(EITHER, LLAMA)
    assert {each.entry.dtype for each in types} == {None, "fp8"}
    assert len({label(each.entry) for each in types}) == len(types)
    assert "l4@72W fp8 x1 mixed" in {label(each.entry) for each in types}


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_what_runs_today_is_known_whether_or_not_it_names_the_llm_s_own_type(dtype) -> None:
    today = CurrentFleet(fleet=(FleetEntry(gpu="l4", role="mixed", count=3, dtype=dtype),))
    entries = [each.entry for each in replica_types(EITHER, LLAMA)[0]]
    present = present_counts(EITHER.replace(current=today), LLAMA, entries)
    assert {label(entry): count for entry, count in zip(entries, present, strict=True) if count} == {"l4@72W x1 mixed": 3}


def test_capacity_takes_the_weights_that_save_gpus() -> None:
    wide, narrow = (
        capacity(EITHER.replace(supply={"l4": Supply(max=4, dtypes=dtypes)}), rate_per_s=0.5)
        for dtypes in (("bf16",), ("bf16", "fp8"))
    )
    assert [entry.dtype for entry in wide.fleet] == [None]
    assert [entry.dtype for entry in narrow.fleet] == ["fp8"]
    assert narrow.cost_usd_per_hour < wide.cost_usd_per_hour
    assert {replica.dtype for replica in narrow.planned.plan.replicas} == {"fp8"}
    assert "l4@72W fp8 mixed" in in_words(narrow.fleet)
    assert entry_json(narrow.fleet[0])["dtype"] == "fp8"


def test_a_plan_takes_the_only_type_and_refuses_a_choice() -> None:
    made = plan_scenario(CHAT.replace(fleet=(), supply={"l4": Supply(count=2, dtypes=("fp8",))})).plan
    assert {replica.dtype for replica in made.replicas} == {"fp8"}
    with pytest.raises(SpecError, match="bf16, fp8: a plan takes one data type; name one, or let optsched capacity choose"):
        plan_scenario(CHAT.replace(fleet=(), supply={"l4": Supply(count=2, dtypes=("bf16", "fp8"))}))
