"""What a replica type is said to sustain, against the simulator and against itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from factories import LAW, make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.capacity.classes import length_classes
from optsched.capacity.columns import Targets, dominated, evaluate_columns
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

ENGINE = EngineSpec(max_batched_tokens=512, max_sequences=64)
SIZES = {"block_tokens": 16, "max_batched_tokens": 512, "max_sequences": 64}


def alike(prompt: int, output: int, number: int) -> Workload:
    return Workload(
        np.arange(number),
        np.zeros(number),
        np.arange(number + 1),
        np.full(number, prompt),
        np.full(number, output),
        np.zeros(number),
    )


@pytest.mark.parametrize(("prompt", "output"), [(600, 100), (2000, 40), (100, 300)])
@pytest.mark.parametrize("kv_blocks", [400, 4000])
def test_the_rate_is_what_a_simulated_replica_sustains_at_its_batch(prompt: int, output: int, kv_blocks: int) -> None:
    """A closed loop of as many conversations as the operating batch holds."""
    plan = make_plan(["mixed"], kv_blocks=kv_blocks, policy="collocated", parameters={"admission": 0}, engine=ENGINE)
    classes = length_classes("chat", alike(prompt, output, 10))
    columns = evaluate_columns(plan.replicas, classes, Targets(), **SIZES)
    batch = int(columns.batch[0, 0])
    work = alike(prompt, output, 12 * batch)
    log = simulate(plan, work.with_arrivals(np.zeros(work.num_conversations), batch))
    simulated = work.num_conversations / log.makespan_s
    assert columns.rate_per_s[0, 0] == pytest.approx(simulated, rel=0.12)


@pytest.mark.parametrize("token_s", [0.008, 0.015, 0.05])
def test_the_operating_batch_keeps_the_time_between_tokens(token_s: float) -> None:
    plan = make_plan(["mixed"], kv_blocks=4000, policy="collocated", parameters={"admission": 0}, engine=ENGINE)
    classes = length_classes("chat", alike(300, 200, 10))
    columns = evaluate_columns(plan.replicas, classes, Targets(token_s=token_s), **SIZES)
    batch = int(columns.batch[0, 0])
    work = alike(300, 200, 10 * batch)
    log = simulate(plan, work.with_arrivals(np.zeros(work.num_conversations), batch))
    middle = slice(2 * batch, 8 * batch)
    assert ((log.end_s - log.first_token_s)[middle] / 199).mean() <= 1.1 * token_s
    assert columns.batch[0, 0] <= evaluate_columns(plan.replicas, classes, Targets(), **SIZES).batch[0, 0]


@settings(max_examples=50)
@given(workloads(max_conversations=30))
def test_classes_divide_the_conversations(workload: Workload) -> None:
    classes = length_classes("chat", workload)
    assert sum(each.share for each in classes) == pytest.approx(1)
    assert sum(each.share * each.output_tokens for each in classes) * workload.num_conversations == pytest.approx(
        workload.output_tokens.sum()
    )
    assert len({each.name for each in classes}) == len(classes) <= 9


def test_a_split_pair_works_as_much_as_a_mixed_replica_in_its_two_halves() -> None:
    plan = make_plan(["mixed", "prefill", "decode"], kv_blocks=4000, engine=ENGINE)
    classes = length_classes("chat", alike(600, 100, 10))
    columns = evaluate_columns(plan.replicas, classes, Targets(), **SIZES)
    mixed, prefill, decode = columns.rate_per_s[:, 0]
    assert 1 / mixed == pytest.approx(1 / prefill + 1 / decode)
    assert columns.joules[0, 0] == pytest.approx(columns.joules[1:, 0].sum())


def test_what_is_not_served_says_why() -> None:
    plan = make_plan(["mixed", "decode"], kv_blocks=40, engine=ENGINE)
    classes = length_classes("chat", alike(600, 100, 10))
    reasons = evaluate_columns(plan.replicas, classes, Targets(), **SIZES).reason
    assert "its context of 700 tokens exceeds the pool of 640" in reasons[0][0]
    large = [replica.replace(kv_blocks=400) for replica in plan.replicas]
    reasons = evaluate_columns(large, classes, Targets(first_token_s=1e-3, token_s=1e-3), **SIZES).reason
    assert "its prompt alone takes" in reasons[0][0]
    assert "a token takes" in reasons[1][0]


@settings(max_examples=30)
@given(st.floats(1, 3), st.floats(1, 3))
def test_a_slower_or_smaller_type_at_the_same_price_is_dominated(slower: float, smaller: float) -> None:
    plan = make_plan(["mixed"], kv_blocks=900, engine=ENGINE)
    law = LAW.replace(floor_s=LAW.floor_s * slower, gemm_s=tuple(slower * each for each in LAW.gemm_s), kv_s=LAW.kv_s * slower)
    other = plan.replicas[0].replace(coefficients=law, kv_blocks=int(900 / smaller))
    classes = length_classes("chat", alike(300, 200, 10))
    columns = evaluate_columns([plan.replicas[0], other], classes, Targets(), **SIZES)
    columns = dataclasses.replace(columns, joules=np.ones((2, 1)))
    better = dominated(columns, np.ones(2), np.ones((2, 1)))
    assert (better[1] == 0) != (better[0] == 1)  # of twins, one goes
    assert better[1] == 0 or columns.rate_per_s[0, 0] == columns.rate_per_s[1, 0]
    assert dominated(columns, np.array([2.0, 1.0]), np.ones((2, 1)))[1] is None
