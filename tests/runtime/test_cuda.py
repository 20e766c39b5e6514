"""Steps on a GPU against the same steps on the CPU, and replays against the same operations launched one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_llms import ALL
from test_decode import BLOCKS, padded, random_batch, random_pool
from test_replica import SEED, conversations, serve

from optsched.batching.state import NO_PARAMETERS
from optsched.domain.llm import Llm
from optsched.domain.workload import Workload
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.decode import DecodeSize, static_logits
from optsched.runtime.graphs import CudaCapture, DecodeGraphs
from optsched.runtime.messages import Limits
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica
from optsched.runtime.step import forward, step, step_logits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LLMS = pytest.mark.parametrize("llm", ALL, ids=lambda llm: f"{llm.name}-{llm.hidden_ratio:g}")
# Of the largest logit. On the CPU these llms are off by up to 1.5e-6 (float32) and 0.072 (bfloat16, 8 bits) from float64.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
BATCHES = ([9, 0, 26], [27] * 8, [3, 4, 5, 11, 12], [26, 1, 13, 0, 0, 20, 7], [0], [14, 2, 8])


def model_on(device: str, llm: Llm, dtype: torch.dtype) -> Transformer:
    return Transformer(llm, random_weights(llm, 11, dtype, device, std=0.3))


def batches_of(llm: Llm) -> list[Batch]:
    rng = np.random.default_rng(4)
    return [random_batch(llm, contexts, rng) for contexts in BATCHES]


@LLMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_replayed_steps_say_the_tokens_of_launched_ones(llm: Llm, dtype: torch.dtype) -> None:
    model = model_on("cuda", llm, dtype)
    replayed, launched = (random_pool(llm, dtype, 1, "cuda") for _ in range(2))
    graphs = DecodeGraphs(model, replayed, 8, CudaCapture(model.device), 3)
    eager = DecodeGraphs(model, launched, 8, None)
    graphs.warm_up()
    for batch in batches_of(llm) * 2:
        size = graphs.size_for(batch)
        assert size is not None
        assert graphs.step(batch, size).tolist() == eager.step(batch, size).tolist()
        torch.testing.assert_close(replayed.storage[:, :BLOCKS], launched.storage[:, :BLOCKS], rtol=0, atol=0)


@LLMS
def test_replayed_steps_say_the_tokens_of_the_step_of_any_batch(llm: Llm) -> None:
    model = model_on("cuda", llm, torch.float64)
    ours, theirs = (random_pool(llm, torch.float64, 1, "cuda") for _ in range(2))
    graphs = DecodeGraphs(model, ours, 8, CudaCapture(model.device))
    for batch in batches_of(llm):
        size = graphs.size_for(batch)
        assert size is not None
        assert graphs.step(batch, size).tolist() == step(model, theirs, batch).tolist()


@LLMS
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_logits_of_a_gpu_are_those_of_the_cpu_within_the_tolerance_of_the_data_type(llm: Llm, dtype: torch.dtype) -> None:
    here, there = model_on("cpu", llm, dtype), model_on("cuda", llm, dtype)
    pools = {name: random_pool(llm, dtype, 2, device) for name, device in (("cpu", "cpu"), ("any", "cuda"), ("static", "cuda"))}
    for batch in batches_of(llm):
        expected = step_logits(here, pools["cpu"], batch).double()
        off = TOLERANCE[dtype] * expected.abs().max()
        assert (step_logits(there, pools["any"], batch).cpu().double() - expected).abs().max() < off
        with torch.inference_mode():
            ours = static_logits(there, pools["static"], padded(batch, pools["static"], DecodeSize(8, 8)))[: len(batch.new)]
        assert (ours.cpu().double() - expected).abs().max() < off


@LLMS
def test_a_replica_on_a_gpu_says_the_tokens_of_the_bare_llm_on_the_cpu(llm: Llm) -> None:
    model, count = model_on("cuda", llm, torch.float64), 6
    limits = Limits("vllm-chunked", 16, 0, 32, 8, 0.0, 1.0, 1.0, NO_PARAMETERS)
    pool = BlockPool(llm, 40, 16, torch.float64, "cuda")
    replica = Replica(0, model, pool, limits, SEED, Clock(), Recorder())
    assert replica.graphs is not None
    replica.graphs.warm_up()
    workload = Workload(
        conversation_id=np.arange(count), arrival_s=np.zeros(count), first_turn=np.arange(count + 1),
        new_tokens=np.array([40, 3, 17, 60, 1, 9]), output_tokens=np.array([6, 20, 9, 2, 30, 12]), gap_s=np.zeros(count),
    )  # fmt: skip
    reports, here = serve(replica, workload, [False] * count), model_on("cpu", llm, torch.float64)
    for known, outputs in conversations(workload, reports, llm.vocab_size):
        best = forward(here, torch.tensor(known)).argmax(-1)
        assert [known[i] for i in outputs] == best[[i - 1 for i in outputs]].tolist()
