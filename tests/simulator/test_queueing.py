"""The simulator against queueing theory: what a queue of servers must do is known, and nobody here wrote it."""

from __future__ import annotations

import heapq
from math import factorial

import numpy as np
import pytest
from factories import make_plan
from hypothesis import given
from hypothesis import strategies as st

from optsched.domain.plan import Assignment
from optsched.domain.scenario import EngineSpec
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

LINEAR = StepLaw(
    overhead_s=0.0, floor_s=1e-3, gemm_tokens=(0, 1000), gemm_s=(0.0, 1.0), pair_s=0.0, prefill_context_s=0.0, kv_s=0.0,
    sequence_s=0.0, hidden_s=0.0, hidden_step_s=0.0, step_j=0.0, gemm_j=(0.0, 0.0), pair_j=0.0, prefill_context_j=0.0, kv_j=0.0,
    sequence_j=0.0, hidden_j=0.0, hidden_step_j=0.0, idle_w=0.0,
)  # fmt: skip


def requests(arrival_s: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> Workload:
    count = len(arrival_s)
    return Workload(np.arange(count), arrival_s, np.arange(count + 1), prompt, output, np.zeros(count))


def waits(arrival_s: np.ndarray, service_s: np.ndarray, servers: int) -> np.ndarray:
    """Return how long each waits where all wait in one queue (the recursions of Lindley, and of Kiefer and Wolfowitz)."""
    free_s, found = [0.0] * servers, []
    for arrival, service in zip(arrival_s.tolist(), service_s.tolist(), strict=True):
        start = max(arrival, heapq.heappop(free_s))
        heapq.heappush(free_s, start + service)
        found.append(start - arrival)
    return np.array(found)


def test_random_splitting_gives_each_replica_the_pollaczek_khinchine_wait() -> None:
    """Prompts of a single token's answer, one at a time: the simulator does what the recursion says, and that is M/G/1."""
    generator, replicas, load = np.random.default_rng(7), 3, 0.6

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        prompt = generator.choice([100, 300, 1200], count, p=[0.5, 0.4, 0.1])
        gaps = generator.exponential(0.29 / (replicas * load), count)
        wait_s = load / 0.29 * (0.5 * 0.1**2 + 0.4 * 0.3**2 + 0.1 * 1.2**2) / (2 * (1 - load))
        return np.cumsum(gaps), prompt, generator.integers(replicas, size=count), wait_s

    arrival_s, prompt, server, _ = drawn(6_000)
    engine = EngineSpec(max_batched_tokens=2048, max_sequences=1)
    plan = make_plan(["mixed"] * replicas, law=LINEAR, kv_blocks=10**7, policy="optimised", engine=engine)
    assignments = tuple(Assignment(conversation=i, prefill=f"r{r}", decode=f"r{r}") for i, r in enumerate(server))
    plan = plan.replace(placement=plan.placement.replace(assignments=assignments))
    log = simulate(plan, requests(arrival_s, prompt, np.ones(len(prompt), np.int64)), record_steps=False)
    for replica in range(replicas):
        mine = server == replica
        np.testing.assert_allclose((log.start_s - arrival_s)[mine], waits(arrival_s[mine], prompt[mine] / 1000, 1), atol=1e-6)
    arrival_s, prompt, server, theory_s = drawn(600_000)
    for replica in range(replicas):
        mine = server == replica
        assert waits(arrival_s[mine], prompt[mine] / 1000, 1).mean() == pytest.approx(theory_s, rel=0.04)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (5, 0.8)])
def test_pooled_replicas_meet_erlang_c(servers: int, load: float) -> None:
    """A pool holds one conversation at a time; the others wait in one queue: the recursion again, and that is M/M/c."""
    generator, mean_s = np.random.default_rng(11), 0.02
    output = np.maximum(1, np.minimum(generator.exponential(mean_s, 3_000) / 1e-3, 1500)).astype(np.int64)
    arrival_s = np.cumsum(generator.exponential(mean_s / (servers * load), len(output)))
    flat = LINEAR.replace(gemm_s=(0.0, 0.0))  # every step takes 1 ms
    engine = EngineSpec(max_batched_tokens=2048, max_sequences=4)
    plan = make_plan(["mixed"] * servers, law=flat, kv_blocks=-(-3500 // 16), policy="collocated", engine=engine)
    workload = requests(arrival_s, np.full(len(output), 1990), output)
    log = simulate(plan, workload, record_steps=False, record_tokens=False)
    np.testing.assert_allclose(log.start_s - arrival_s, waits(arrival_s, output * 1e-3, servers), atol=1e-6)
    offered = servers * load
    tail = offered**servers / (factorial(servers) * (1 - load))
    probability = tail / (sum(offered**k / factorial(k) for k in range(servers)) + tail)
    service_s = generator.exponential(mean_s, 2_000_000)
    waited_s = waits(np.cumsum(generator.exponential(mean_s / offered, len(service_s))), service_s, servers)
    assert (waited_s > 0).mean() == pytest.approx(probability, rel=0.02)
    assert waited_s.mean() == pytest.approx(probability * mean_s / (servers * (1 - load)), rel=0.04)


@given(
    prompt=st.integers(1, 3000), output=st.integers(1, 400), chunk=st.integers(16, 1024),
    rates=st.tuples(*[st.floats(0, 1e-4)] * 4), floor_s=st.floats(0, 0.01),
)  # fmt: skip
def test_a_single_request_takes_what_the_step_law_says(
    prompt: int, output: int, chunk: int, rates: tuple[float, ...], floor_s: float
) -> None:
    pair, context, kv, sequence = rates
    law = LINEAR.replace(
        floor_s=floor_s, pair_s=pair * 1e-3, prefill_context_s=context, kv_s=kv, sequence_s=sequence, overhead_s=1e-3
    )
    plan = make_plan(["mixed"], law=law, policy="collocated", engine=EngineSpec(max_batched_tokens=chunk, max_sequences=4))
    log = simulate(plan, requests(np.zeros(1), np.array([prompt]), np.array([output])))
    assert log.first_token_s[0] == pytest.approx(law.prefill_s(prompt, 0, chunk), rel=1e-9)
    decode_s = sum(law.step_s(1, 0, prompt + step, 1) for step in range(output - 1))
    assert log.end_s[0] - log.first_token_s[0] == pytest.approx(decode_s, rel=1e-9, abs=1e-12)
