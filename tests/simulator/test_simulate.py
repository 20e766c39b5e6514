"""The simulator keeps its conservation laws, agrees with arithmetic, and honours the plan."""

from __future__ import annotations

import numpy as np
import pytest
from factories import LAW, make_plan, make_workload
from hypothesis import given
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.accounting import energy_j, measure_plan
from optsched.domain.log import Steps
from optsched.domain.results import Latencies
from optsched.domain.standalone import standalone_latency
from optsched.domain.step_law import JITTER_QUANTILES
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, PlanError
from optsched.simulator.simulate import simulate

FLEETS = [
    ("conserve", ["prefill", "decode"]),
    ("conserve", ["prefill", "decode", "decode"]),
    ("conserve", ["prefill", "prefill", "decode"]),
    ("conserve", ["mixed", "mixed"]),
    ("conserve", ["prefill", "mixed", "decode"]),
    ("collocated", ["mixed"]),
    ("collocated", ["mixed", "mixed", "mixed"]),
    ("adaptive", ["mixed", "mixed", "mixed"]),
    ("adaptive", ["prefill", "mixed", "decode"]),
]
SWE = make_workload([[(300, 10), (8, 5), (20, 1), (4, 7)], [(500, 1), (8, 3)], [(100, 4)]], [0.0, 0.01, 0.02])


@given(
    workload=workloads(max_conversations=6, max_turns=4),
    fleet=st.sampled_from(FLEETS),
    batching=st.sampled_from(["vllm-chunked", "apt-serve", "paced"]),
)
def test_every_run_conserves_requests_tokens_and_blocks(workload, fleet, batching):
    policy, roles = fleet
    plan = make_plan(roles, policy=policy, batching=batching, kv_blocks=2000, rho_s_per_block=1e-4)
    log = simulate(plan, workload)  # raises where a law is broken
    assert log.violations(workload) == []
    assert np.array_equal(np.sort(log.token_s), np.sort(log.token_s[np.isfinite(log.token_s)]))


@given(workload=workloads(max_conversations=6, max_turns=3), spare=st.integers(0, 8))
def test_a_pool_that_barely_holds_one_conversation_still_serves_all(workload, spare):
    blocks = int(-(-workload.peak_tokens.max() // 16)) + spare
    plan = make_plan(["prefill", "decode", "decode"], kv_blocks=max(blocks, 1), parameters={"extra_tokens": 0})
    log = simulate(plan, workload)
    assert log.violations(workload) == []


def test_memory_pressure_preempts_and_recomputes():
    workload = make_workload([[(100, 60), (8, 60)] for _ in range(8)], [0.0] * 8)
    plan = make_plan(["prefill", "decode"], kv_blocks=50, parameters={"extra_tokens": 0})
    log = simulate(plan, workload)
    assert log.preemptions > 0
    assert {event.kind for event in log.events} <= {"preempted", "evicted"}
    assert int(log.steps.prefill_tokens.sum()) > int(workload.new_tokens.sum())


def test_a_conversation_alone_has_its_standalone_latency():
    workload = make_workload([[(300, 10), (8, 5), (20, 1), (700, 7)]], [3.0], gap_s=0.5)
    plan = make_plan(["mixed"], policy="collocated")
    metrics = measure_plan(plan, simulate(plan, workload), workload)
    assert metrics.normalised.ttfet.mean == pytest.approx(1, rel=1e-9)
    assert metrics.normalised.e2e.mean == pytest.approx(1, rel=1e-9)
    assert metrics.normalised.last_turn_tbt.mean == pytest.approx(1, rel=1e-9)


def test_a_disaggregated_conversation_alone_adds_exactly_one_transfer():
    workload = make_workload([[(300, 10), (8, 5)]], [0.0])
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, workload)
    alone = standalone_latency(workload, LAW, plan.engine.max_batched_tokens)
    moved = 1e-3 + 300 * plan.llms[0].shape.kv_bytes_per_token / 1e9
    assert log.end_s[-1] == pytest.approx(alone.e2e_s[0] + moved, rel=1e-9)
    assert log.transfers.bytes.tolist() == [300 * plan.llms[0].shape.kv_bytes_per_token]


def test_conserve_transfers_each_conversation_once_and_pins_it():
    log = simulate(make_plan(["prefill", "decode", "decode"]), SWE)
    assert sorted(log.transfers.conversation.tolist()) == [0, 1, 2]
    for turns in SWE:
        assert len(set(log.decode_replica[turns.start : turns.stop].tolist())) == 1
        later = log.prefill_replica[turns.start + 1 : turns.stop]
        assert set(later.tolist()) <= {int(log.decode_replica[turns.start])}


def test_each_of_255_conversations_of_five_turns_is_transferred_exactly_once_under_conserve():
    generator = np.random.default_rng(255)
    turns = [[(int(generator.integers(20, 400)), int(generator.integers(2, 60))) for _ in range(5)] for _ in range(255)]
    workload = make_workload(turns, np.cumsum(generator.exponential(0.2, 255)).tolist(), gap_s=0.1)
    log = simulate(make_plan(["prefill", "decode", "decode", "decode"], kv_blocks=1000), workload)
    moves, first = log.transfers, workload.first_turn[:-1]
    order = np.argsort(moves.conversation)
    assert moves.conversation[order].tolist() == list(range(255))
    assert np.array_equal(moves.source[order], log.prefill_replica[first])
    assert np.array_equal(moves.target[order], log.decode_replica[first])
    assert np.all(moves.start_s[order] >= log.first_token_s[first])
    assert np.array_equal(log.prefill_replica[workload.turn_in_conversation > 0], np.repeat(moves.target[order], 4))
    assert set(log.decode_replica.tolist()) == {1, 2, 3}


def test_collocated_transfers_nothing():
    assert len(simulate(make_plan(["mixed", "mixed"], policy="collocated"), SWE).transfers.start_s) == 0


def test_a_run_is_deterministic():
    plan = make_plan(["prefill", "decode", "decode"])
    first, second = simulate(plan, SWE), simulate(plan, SWE)
    assert np.array_equal(first.token_s, second.token_s)
    assert np.array_equal(first.steps.end_s, second.steps.end_s)


@given(workload=workloads(max_conversations=5, max_turns=3), fleet=st.sampled_from(FLEETS))
def test_the_paper_clock_never_shows_more_than_the_true_clock(workload, fleet):
    plan = make_plan(fleet[1], policy=fleet[0], kv_blocks=2000)
    log = simulate(plan, workload)
    alone = standalone_latency(workload, LAW, plan.engine.max_batched_tokens)
    true, paper = (Latencies.of(log, workload, alone, clock) for clock in ("true", "paper"))
    assert np.all(log.queue_s >= -1e-12)
    assert np.all(log.admission_s >= -1e-12)
    for name in ("ttft_s", "ttfet_s", "e2e_s"):
        assert np.all(getattr(paper, name) <= getattr(true, name) + 1e-12)


def content(steps: Steps) -> tuple[np.ndarray, ...]:
    """Return the arguments of the step law for the steps of a log."""
    return (
        steps.prefill_tokens + steps.decode_sequences, steps.pairs, steps.kv_tokens, steps.sequences, steps.hidden_tokens,
        steps.prefill_context_tokens,
    )  # fmt: skip


def test_energy_is_idle_power_over_the_makespan_plus_the_work():
    plan = make_plan(["mixed"], policy="collocated")
    log = simulate(plan, SWE)
    work = LAW.energy_j(*content(log.steps)).sum()
    assert energy_j(plan, log) == pytest.approx(LAW.idle_w * log.makespan_s + work, rel=1e-9)


def test_every_step_takes_what_the_step_law_says():
    plan = make_plan(["prefill", "decode", "decode"])
    steps = simulate(plan, SWE).steps
    assert np.allclose(steps.end_s - steps.start_s, LAW.step_s(*content(steps)), rtol=1e-9, atol=0)


def test_a_prefill_reads_the_context_of_its_earlier_chunks_and_turns():
    workload = make_workload([[(600, 3), (8, 2)]], [0.0])
    steps = simulate(make_plan(["mixed"], policy="collocated"), workload).steps
    read = steps.prefill_context_tokens[steps.prefill_tokens > 0]
    assert read.tolist() == [0, 256, 512, 602]  # chunks of 256; then the second turn, whose last output is not cached yet
    assert np.all(steps.prefill_context_tokens[steps.prefill_tokens == 0] == 0)


def test_replicas_of_one_host_slow_each_other_down():
    law = LAW.replace(busy_slowdown=(1.0, 1.5, 2.5))
    workload = make_workload([[(100, 50)], [(100, 50)]], [0.0, 0.0])
    apart = simulate(make_plan(["mixed", "mixed"], policy="collocated", law=law), workload)
    together = simulate(make_plan(["mixed", "mixed"], policy="collocated", law=law, host="one"), workload)
    assert together.steps.busy_replicas.max() == 2
    assert together.makespan_s > 1.3 * apart.makespan_s


def scattered(plan):
    row = tuple(float(value) for value in np.linspace(0.4, 1.6, JITTER_QUANTILES))
    law = plan.replicas[0].coefficients.replace(decode_jitter=(row,), prefill_jitter=(row,))
    return plan.replace(replicas=tuple(replica.replace(coefficients=law) for replica in plan.replicas))


def test_steps_of_a_shared_host_scatter_about_the_same_mean():
    workload = make_workload([[(100, 400)]] * 4, [0.0, 0.1, 0.2, 0.3])
    for host in ("one", None):
        plan = make_plan(["mixed", "mixed"], policy="collocated", host=host)
        even, uneven = simulate(plan, workload), simulate(scattered(plan), workload)
        assert uneven.violations(workload) == []
        assert uneven.makespan_s == pytest.approx(even.makespan_s, rel=0.03)
        gaps = [np.diff(log.token_s[:400]) for log in (even, uneven)]
        assert (np.quantile(gaps[1], 0.95) > 1.3 * np.quantile(gaps[0], 0.95)) == (host is not None)


def test_steps_taken_in_one_go_scatter_as_those_taken_one_by_one():
    workload = make_workload([[(100, 60), (30, 20)], [(50, 90)]], [0.0, 0.5])
    plan = scattered(make_plan(["mixed"], policy="collocated", host="one"))
    at_once, one_by_one = (simulate(plan, workload, coast=coast) for coast in (True, False))
    assert at_once.token_s.tolist() == one_by_one.token_s.tolist()


def test_tool_gaps_are_waited_out():
    slow = make_workload([[(50, 2), (5, 2)]], [0.0], gap_s=7.0)
    log = simulate(make_plan(["mixed"], policy="collocated"), slow)
    assert log.arrival_s[1] == pytest.approx(log.end_s[0] + 7.0)


def test_a_conversation_that_no_decoder_holds_is_refused():
    with pytest.raises(InfeasibleError, match=r"holds 400 tokens at its end; the largest decoder has KV cache for 160"):
        simulate(make_plan(["prefill", "decode"], kv_blocks=10), make_workload([[(300, 100)]], [0.0]))


def test_a_plan_that_breaks_its_problem_is_refused():
    plan = make_plan(["prefill", "decode"])
    with pytest.raises(PlanError, match="no replicas to decode on"):
        simulate(plan.replace(replicas=plan.replicas[:1], links=()), SWE)


def test_a_conversation_that_ends_on_its_prefiller_stops_waiting_for_a_decoder():
    workload = make_workload([[(150, 40)], [(100, 1)], [(30, 3)]], [0.0, 0.0, 0.01])
    log = simulate(make_plan(["prefill", "decode"], kv_blocks=14, parameters={"extra_tokens": 0}), workload)
    assert log.violations(workload) == []
    assert sorted(log.transfers.conversation.tolist()) == [0, 2]


def test_the_step_buffer_may_overflow(monkeypatch):
    from optsched.simulator import run as module

    monkeypatch.setattr(module, "_STEP_CAPACITY", 8)
    log = simulate(make_plan(["prefill", "decode"]), SWE)
    assert log.violations(SWE) == []


def test_log_violations_names_what_is_wrong():
    log = simulate(make_plan(["mixed"], policy="collocated"), SWE)
    shorter = Workload(*(getattr(SWE, name) for name in ("conversation_id", "arrival_s", "first_turn", "new_tokens")),
                       output_tokens=SWE.output_tokens + 1, gap_s=SWE.gap_s)  # fmt: skip
    assert "output tokens" in log.violations(shorter)[0]
    log.token_s[0] += 1
    assert any("out of order" in line or "contradicts" in line for line in log.violations(SWE))
