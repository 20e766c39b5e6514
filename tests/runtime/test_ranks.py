"""Replicas of two ranks: the same tokens as with one, caches that move between unequal replicas, and no rank left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import TINY, make_plan, make_workload
from hypothesis import HealthCheck, given, settings
from saboteur import Fault, Saboteur
from small_llms import ALL
from strategies import workloads
from undisturbed import exact_setups, run_on, undisturbed_tokens

from optsched.domain.llm import Llm
from optsched.domain.plan import Plan
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.runtime.model.shard import shard_llm, shard_weights
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights

SIZES = make_workload([[(60, 12), (60, 12)]], [0.0])


def unequal(roles: list[str], ranks: list[int]) -> Plan:
    plan = make_plan(roles, engine=EngineSpec(max_batched_tokens=64, max_sequences=8), kv_blocks=40)
    shared = [replica.replace(tp=tp) for replica, tp in zip(plan.replicas, ranks, strict=True)]
    return plan.replace(replicas=tuple(shared))


PLAN = unequal(["prefill", "decode", "decode"], [2, 1, 2])


@pytest.fixture(scope="module")
def fleet() -> Iterator[Saboteur]:
    with Saboteur(exact_setups(PLAN, SIZES)) as started:
        yield started


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(workload=workloads(4, 2, 40, 8, 0.01, with_prefix_blocks=False))
def test_two_ranks_yield_the_tokens_of_one_also_when_caches_move_between_them(fleet: Saboteur, workload: Workload) -> None:
    soon = replace(workload, arrival_s=workload.arrival_s / 1e3)
    log, tokens = run_on(fleet, PLAN, soon)
    assert tokens.tolist() == undisturbed_tokens(soon).tolist()
    assert log.violations(soon) == []
    assert not log.events


def test_caches_that_move_have_the_heads_of_all_ranks(fleet: Saboteur) -> None:
    workload = make_workload([[(33, 4), (3, 3)] for _ in range(4)], [0.0] * 4)
    log, tokens = run_on(fleet, PLAN, workload)
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    assert set(log.transfers.target.tolist()) == {1, 2}
    assert set(log.transfers.bytes.tolist()) == {3 * 16 * TINY.kv_bytes_per_token * 2}  # float64 in place of float32


def ranks_of(worker: int) -> list[int]:
    """Return the processes that a worker started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == worker:
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("victim", ["first rank", "second rank"])
def test_a_replica_that_loses_a_rank_is_lost_whole_and_its_conversations_go_on(victim: str) -> None:
    plan = unequal(["mixed", "mixed"], [2, 1]).replace(placement=make_plan(["mixed"], policy="collocated").placement)
    workload = make_workload([[(30, 200)], [(20, 200)], [(10, 3)]], [0.0, 0.0, 0.0])
    with Saboteur(exact_setups(plan, workload)) as fleet:
        (second,) = ranks_of(fleet.pid(0))
        if victim == "first rank":
            fleet.prepare([Fault("kill", 5, victim=0)])
        else:
            os.kill(second, signal.SIGKILL)
        log, tokens = run_on(fleet, plan, workload)
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    assert [event.replica for event in log.events if event.kind == "worker_died"] == [0]
    deadline_s = time.monotonic() + 10.0
    while Path(f"/proc/{second}").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("llm", [llm for llm in ALL if llm.num_kv_heads % 2 == 0], ids=lambda llm: f"{llm.name}-{llm.head_dim}")
def test_the_parts_of_a_layer_sum_to_the_whole(llm: Llm) -> None:
    weights = random_weights(llm, 1, torch.float64, std=0.3)
    whole = Transformer(llm, weights)
    parts = [Transformer(shard_llm(llm, 2), shard_weights(llm, weights, rank, 2)) for rank in range(2)]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, llm.hidden_size, dtype=torch.float64, generator=generator)
    angles = whole.angles(torch.arange(5))
    query, key_value = whole.project(0, x, angles)
    shared = [part.project(0, x, angles) for part in parts]
    assert torch.allclose(torch.cat([each for each, _ in shared], dim=1), query)
    assert torch.allclose(torch.cat([each for _, each in shared], dim=2), key_value)
    attended = torch.randn(5, llm.num_heads * llm.head_dim, dtype=torch.float64, generator=generator)
    out = sum(
        torch.nn.functional.linear(half, part.weights.layers[0].out, part.weights.layers[0].out_bias)
        for half, part in zip(attended.chunk(2, dim=1), parts, strict=True)
    )
    layer = weights.layers[0]
    assert torch.allclose(out, torch.nn.functional.linear(attended, layer.out, layer.out_bias))
