"""Which GPUs ranks take, and what computes on them."""

from __future__ import annotations

import pytest
import torch
from factories import make_plan, make_workload
from hypothesis import given
from hypothesis import strategies as st
from small_llms import ALL

from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.runtime.gpus import deal_gpus, on_gpus, take_device
from optsched.runtime.model.weights import moved_weights, random_weights
from optsched.runtime.setups import worker_setups


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(4, 9))
def test_ranks_of_a_replica_never_share_a_gpu_and_all_gpus_are_used_alike(ranks: list[int], num_gpus: int) -> None:
    dealt = deal_gpus(ranks, num_gpus)
    assert [len(gpus) for gpus in dealt] == ranks
    assert all(len(set(gpus)) == len(gpus) for gpus in dealt)
    uses = [sum(gpus.count(gpu) for gpus in dealt) for gpu in range(num_gpus)]
    assert max(uses) - min(uses) <= 1


def test_gpus_are_dealt_in_the_order_of_replicas_and_ranks() -> None:
    assert deal_gpus([1, 2, 1, 2], 4) == [(0,), (1, 2), (3,), (0, 1)]
    assert deal_gpus([1, 1, 1], 1) == [(0,)] * 3


@pytest.mark.parametrize("num_gpus", [0, 1, 3])
def test_more_ranks_than_gpus_are_one_line_that_says_how_many_there_are(num_gpus: int) -> None:
    with pytest.raises(
        SpecError, match=f"tp 4 needs 4 different GPUs; this machine has {num_gpus}. Plan replicas with a smaller"
    ):
        deal_gpus([1, 4, 2], num_gpus)


def test_a_setup_says_which_gpu_each_rank_takes() -> None:
    plan = make_plan(["prefill", "decode"])
    plan = plan.replace(replicas=(plan.replicas[0].replace(tp=2), plan.replicas[1]))
    workload = make_workload([[(10, 2)]], [0.0])
    assert [setup.gpus for setup in on_gpus(worker_setups(plan, workload, 0, "cuda"), 2)] == [(0, 1), (0,)]
    assert {take_device(setup, 0) for setup in worker_setups(plan, workload, 0, "cpu")} == {torch.device("cpu")}


@pytest.mark.parametrize("llm", ALL, ids=lambda llm: f"{llm.name}-{llm.hidden_ratio:g}")
def test_weights_that_move_are_the_same_and_tied_ones_stay_tied(llm: Llm) -> None:
    weights = random_weights(llm, 1)
    there = moved_weights(weights, torch.device("meta"))
    assert (there.head is there.embedding) == (weights.head is weights.embedding)
    assert repr(there).count("device='meta'") == repr(moved_weights(weights, torch.device("cpu"))).count("tensor(")
    assert moved_weights(weights, torch.device("cpu")) == weights  # nothing moves, and no tensor is another
