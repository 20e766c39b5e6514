"""Uneventful steps in one go: nobody can tell the difference, and every policy keeps the promise that allows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.batching.policies import POLICIES, STEADY, policy_parameters
from optsched.batching.policies.dispatch import compiled_policy, own_parameters
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.domain.accounting import measure_plan
from optsched.domain.gaps import Gaps
from optsched.domain.log import ExecutionLog, Transfers
from optsched.domain.plan import Assignment, Plan
from optsched.domain.results import Clock
from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

RECORDS = (
    "arrival_s",
    "start_s",
    "first_token_s",
    "end_s",
    "queue_s",
    "admission_s",
    "prefill_replica",
    "decode_replica",
    "token_s",
)
STEPS = ("start_s", "end_s", "prefill_tokens", "pairs", "sequences", "decode_sequences", "kv_tokens", "hidden_tokens")


@pytest.mark.parametrize("batching", [*sorted(STEADY), "apt-serve", "paced"])
@settings(max_examples=20)
@given(workload=workloads(), kv_blocks=st.integers(12, 60), record=st.booleans())
def test_the_execution_is_the_same_with_an_unused_replica_beside_it(
    batching: str, workload: Workload, kv_blocks: int, record: bool
) -> None:
    """A prefiller that nobody uses has placement asked about everything, and every step decided by the policy."""
    engine = EngineSpec(max_batched_tokens=64, max_sequences=6)
    kv_blocks = max(kv_blocks, -(-int(workload.peak_tokens.max()) // 16) + 2)
    told = {"tbt_slo_s": 0.01} | ({"after_tokens": 3, "pace_s": 0.03, "above_share": 0.1} if batching == "paced" else {})
    alone = make_plan(
        ["mixed"], kv_blocks=kv_blocks, policy="collocated", parameters={"oracle": 0, "admission": 0}, batching=batching,
        engine=engine, batching_parameters=told,
    )  # fmt: skip
    beside = make_plan(
        ["mixed", "prefill"], kv_blocks=kv_blocks, policy="collocated", parameters={"oracle": 0, "admission": 0},
        batching=batching, engine=engine, batching_parameters=told,
    )  # fmt: skip
    slow = simulate(beside, workload, record_steps=record, coast=False)
    for quick in (simulate(alone, workload, record_steps=record), simulate(beside, workload, record_steps=record)):
        assert_same(quick, slow)


CLOCKS: tuple[Clock, ...] = ("true", "paper")
FLEETS: list[tuple[str, list[Role], dict[str, float]]] = [
    ("conserve", ["prefill", "decode", "decode"], {}),
    ("conserve", ["prefill", "prefill", "decode", "mixed"], {}),
    ("collocated", ["mixed"] * 3, {}),
    ("collocated", ["mixed"] * 2, {"oracle": 0, "admission": 0}),
    ("adaptive", ["mixed"] * 3, {"start_s": 0.01}),
    ("optimised", ["prefill", "decode", "decode"], {}),
    ("full-disaggregation", ["prefill", "decode", "decode"], {}),
    ("per-turn", ["prefill", "decode", "decode"], {"error": 1.0}),
    ("per-turn", ["prefill", "prefill", "decode", "decode"], {}),
    ("per-turn-emulated", ["prefill", "decode"], {"wrong_share": 0.5}),
]


@pytest.mark.parametrize(("policy", "roles", "parameters"), FLEETS)
@settings(max_examples=16)
@given(
    batching=st.sampled_from(["vllm-chunked", "vllm", "apt-serve", "attain", "paced"]), workload=workloads(),
    spare=st.integers(2, 40), record=st.booleans(), tokens=st.booleans(), gap_s=st.sampled_from([None, 0.0]),
    speeds=st.lists(st.sampled_from([1.0, 1.0, 1.7]), min_size=4, max_size=4),
)  # fmt: skip
def test_replicas_that_run_ahead_execute_the_same_as_step_by_step(
    policy: str, roles: list[Role], parameters: dict[str, float], batching: str, workload: Workload, spare: int, record: bool,
    tokens: bool, gap_s: float | None, speeds: list[float],
) -> None:  # fmt: skip
    """Some replicas alike, so that their steps end at the same moments, and some not; all metrics follow on either clock."""
    if gap_s is not None:
        workload = replace(workload, gap_s=np.full(workload.num_turns, gap_s))
    plan = make_plan(
        roles, kv_blocks=-(-int(workload.peak_tokens.max()) // 16) + spare, policy=policy, parameters=parameters,
        batching=batching, engine=EngineSpec(max_batched_tokens=64, max_sequences=6), batching_parameters={"tbt_slo_s": 0.01},
    )  # fmt: skip
    replicas = tuple(
        replica.replace(coefficients=replica.coefficients.replace(floor_s=replica.coefficients.floor_s * speed))
        for replica, speed in zip(plan.replicas, speeds, strict=False)
    )
    plan = plan.replace(replicas=replicas, placement=plan.placement.replace(assignments=assigned(plan, workload)))
    slow = simulate(plan, workload, record_steps=record, record_tokens=tokens, coast=False)
    quick = simulate(plan, workload, record_steps=record, record_tokens=tokens)
    assert_same(quick, slow)
    if tokens:
        for clock in CLOCKS:
            assert measure_plan(plan, quick, workload, clock) == measure_plan(plan, slow, workload, clock)


def assigned(plan: Plan, workload: Workload) -> tuple[Assignment, ...]:
    """Give conversations to the two decoders in turn, where the plan's policy wants to be told."""
    if plan.placement.policy != "optimised":
        return ()
    ids = [replica.id for replica in plan.replicas]
    return tuple(
        Assignment(conversation=index, prefill=ids[0], decode=ids[1 + index % 2]) for index in range(workload.num_conversations)
    )


def test_a_step_buffer_that_fills_again_and_again_loses_no_step_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    turns = [[(int(generator.integers(10, 60)), int(generator.integers(20, 120))) for _ in range(2)] for _ in range(12)]
    workload = make_workload(turns, np.cumsum(generator.exponential(0.05, 12)).tolist(), gap_s=0.1)
    plan = make_plan(["prefill", "decode", "decode"])
    slow = simulate(plan, workload, coast=False)
    monkeypatch.setattr("optsched.simulator.run._STEP_CAPACITY", 24)
    quick = simulate(plan, workload)
    assert_same(quick, slow)
    assert quick.iterations > 400


def assert_same(quick: ExecutionLog, slow: ExecutionLog) -> None:
    """Compare two executions to the last bit; of replicas that did nothing either has none."""
    for name in RECORDS:
        np.testing.assert_array_equal(getattr(quick, name), getattr(slow, name), err_msg=name)
    for name in ("replica", *STEPS):
        np.testing.assert_array_equal(getattr(quick.steps, name), getattr(slow.steps, name), err_msg=name)
    for name in Transfers.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(quick.transfers, name), getattr(slow.transfers, name), err_msg=name)
    assert quick.dynamic_j is not None
    assert slow.dynamic_j is not None
    np.testing.assert_array_equal(quick.dynamic_j, slow.dynamic_j[: len(quick.dynamic_j)])
    assert (quick.preemptions, quick.events) == (slow.preemptions, slow.events)
    if slow.gaps is not None:
        assert quick.gaps is not None
        # Of gaps that are equal but for rounding, a run keeps any; and sums are taken in another order.
        np.testing.assert_allclose(quick.gaps.max_s, slow.gaps.max_s, rtol=1e-12)
        np.testing.assert_allclose(quick.gaps.p99_s, slow.gaps.p99_s, rtol=1e-12)
        for name in ("mean", "p50", "p95", "p99"):
            expected = getattr(slow.gaps.pooled, name)
            assert getattr(quick.gaps.pooled, name) == (None if expected is None else pytest.approx(expected, rel=1.1e-3))


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(contexts=st.lists(st.integers(1, 60), min_size=1, max_size=8), now_s=st.floats(0, 50), idle=st.integers(0, 2))
def test_a_policy_schedules_everyone_where_all_decode_and_all_fits(
    name: str, contexts: list[int], now_s: float, idle: int
) -> None:
    """With violators, with idle caches, and with no block to spare."""
    count = len(contexts)
    requests, decision = Requests.empty(count + idle), Decision.empty(count + idle)
    requests.identity[:] = np.arange(count + idle)
    requests.context[:] = [*contexts, *[8] * idle]
    requests.emitted[:count] = requests.new_tokens[:count] = 1
    requests.cache[:] = KV
    requests.blocks[:] = -(-requests.context // 4)
    requests.last_token_s[:] = np.linspace(0, now_s, count + idle)
    needed = int((-(-(requests.context[:count] + 1) // 4) - requests.blocks[:count]).sum())
    own = own_parameters(name, policy_parameters(name, {}))
    engine = Engine(now_s, needed, needed + int(requests.blocks.sum()), 4, 2, 16, 8, 0.5, 1e-3, 1.0, 1.0, own)
    scheduled = compiled_policy(name)(requests, np.arange(count + idle), Counts(count, 0, idle), engine, decision)
    assert scheduled == count
    assert decision.tokens.tolist() == [1] * count + [0] * idle
    assert not decision.evict.any()


def test_turns_with_gaps_leave_their_caches_idle_while_others_coast() -> None:
    workload = make_workload([[(20, 30), (4, 40)], [(10, 90)]], [0.0, 0.1], gap_s=0.3)
    plan = make_plan(["mixed"], policy="collocated", parameters={"oracle": 0, "admission": 0})
    log = simulate(plan, workload)
    assert log.iterations == len(log.steps.end_s)
    assert np.isfinite(log.token_s).all()


@pytest.mark.parametrize("batching", ["vllm", "vllm-chunked", "apt-serve"])
@settings(max_examples=20)
@given(workload=workloads(), kv_blocks=st.integers(12, 60), roles=st.sampled_from([("mixed",), ("prefill", "decode")]))
def test_what_is_kept_of_the_gaps_is_what_the_tokens_say(
    batching: str, workload: Workload, kv_blocks: int, roles: tuple[Role, ...]
) -> None:
    kv_blocks = max(kv_blocks, -(-int(workload.peak_tokens.max()) // 16) + 2)
    plan = make_plan(
        list(roles), kv_blocks=kv_blocks, policy="collocated" if len(roles) == 1 else "conserve", batching=batching,
        engine=EngineSpec(max_batched_tokens=64, max_sequences=6), rho_s_per_block=1e-4,
    )  # fmt: skip
    whole, lean = simulate(plan, workload), simulate(plan, workload, record_tokens=False)
    assert lean.token_s is None
    np.testing.assert_array_equal(lean.end_s, whole.end_s)
    exact, kept = Gaps.of(whole, workload), Gaps.of(lean, workload)
    np.testing.assert_allclose(kept.max_s, exact.max_s, rtol=1e-12)
    np.testing.assert_allclose(kept.p99_s, exact.p99_s, rtol=1e-12)
    for name in ("mean", "p50", "p95", "p99"):
        expected = between(whole, workload, name)
        assert getattr(kept.pooled, name) == (None if expected is None else pytest.approx(expected, rel=1.1e-3))


def between(log: ExecutionLog, workload: Workload, name: str) -> float | None:
    """Return a figure of all gaps; percentiles without interpolation."""
    turn = np.repeat(np.arange(workload.num_turns), workload.output_tokens)
    assert log.token_s is not None
    gaps = np.diff(log.token_s)[turn[1:] == turn[:-1]]
    if not len(gaps):
        return None
    return float(gaps.mean() if name == "mean" else np.percentile(gaps, float(name[1:]), method="lower"))
