"""Apt-Serve with optimal batches: against the program as stated here in plain Python, and rule by rule."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from batch_problems import problems
from factories import make_plan
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import workloads
from test_apt_serve import chosen, state

from optsched.batching import BatchProblem, solve
from optsched.batching.batch_solver import BatchSolver
from optsched.batching.embedded import solve_alone
from optsched.batching.generators import BatchRecipe, generate
from optsched.batching.greedy import NO_LIMIT
from optsched.batching.policies.apt_serve_exact import RESOLUTION_S
from optsched.batching.policies.dispatch import compiled_policy
from optsched.batching.problem import BatchPlan
from optsched.batching.solver import greedy_plan
from optsched.batching.state import HIDDEN, KV, Counts, Decision, Engine, Requests
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.simulator.simulate import simulate

EXACT = "apt-serve-exact"
State = tuple[Requests, Counts, Engine]


@st.composite
def moments(draw: st.DrawFn, prefill: bool) -> State:
    """Draw a replica where nothing runs and fresh prompts wait, or where nothing waits and the pool is short."""
    num, idle = draw(st.integers(1, 12)), draw(st.integers(0, 2)) if prefill else 0
    requests = Requests.empty(num + idle)
    lengths = np.array(draw(st.lists(st.integers(1, 90), min_size=num + idle, max_size=num + idle)))
    requests.new_tokens[:num] = lengths[:num] if prefill else 1
    requests.context[0 if not prefill else num :] = lengths[0 if not prefill else num :]
    requests.emitted[:] = 0 if prefill else 1
    requests.cache[:] = np.where(requests.context > 0, KV, 0)
    requests.blocks[:] = -(-requests.context // 4)
    pending = st.one_of(st.just(0.0), st.integers(0, 40).map(lambda ms: ms * 1e-3), st.floats(0.0, 9.0))
    requests.last_token_s[:num] = 100.0 - np.array(draw(st.lists(pending, min_size=num, max_size=num)))
    least = int((-(-(requests.context + requests.new_tokens) // 4)).max())
    held = int(requests.blocks.sum())
    total = max(least, held + draw(st.integers(0, 40 if prefill else num - 1)))
    engine = Engine(
        now_s=100.0, free_blocks=total - held, total_blocks=total, block_tokens=4, watermark_blocks=0,
        max_batched_tokens=draw(st.integers(1, 200)) if prefill else 64,
        max_sequences=draw(st.integers(1, 12)) if prefill else 12,
        hidden_ratio=draw(st.sampled_from([0.0, 0.5, 0.75])) if prefill else 0.0,
        rho_s_per_block=draw(st.sampled_from([0.0, 1e-4, 1e-3])),
        ttft_slo_s=draw(st.sampled_from([2.0, 1e9])), tbt_slo_s=draw(st.sampled_from([2.0, 1e9])),
    )  # fmt: skip
    return requests, Counts(0 if prefill else num, num if prefill else 0, idle), engine


def program(requests: Requests, counts: Counts, engine: Engine) -> BatchProblem:
    """State the program of such a moment."""
    num = counts.running + counts.waiting
    pending = [engine.now_s - float(requests.last_token_s[i]) for i in range(num)]
    limit = engine.ttft_slo_s if counts.waiting else engine.tbt_slo_s
    whole = [max(1.0, np.rint(p / RESOLUTION_S)) * RESOLUTION_S for p in pending]
    lengths = [int(requests.context[i] + requests.new_tokens[i]) for i in range(num)]
    kv = [ceil(length / 4) for length in lengths]
    hidden = [ceil(length / int(4 / engine.hidden_ratio + 1e-9)) for length in lengths] if engine.hidden_ratio else kv
    near_zero = 1e-4 * min(whole) / engine.total_blocks if counts.waiting else 1e-6
    late = [p > limit for p in pending]
    pressure = num - sum(late)
    problem = {
        "pending_s": [near_zero * m if is_late else p for p, m, is_late in zip(whole, kv, late, strict=True)],
        "kv_blocks": kv,
        "hidden_blocks": [m if is_late else s for m, s, is_late in zip(kv, hidden, late, strict=True)],
        "hidden_penalty_s": [pressure * engine.rho_s_per_block * m for m in kv],
        "memory_blocks": engine.total_blocks,
    }
    if counts.running:
        return BatchProblem(**problem)  # type: ignore[arg-type]
    tokens = [min(length, engine.max_batched_tokens) for length in lengths]
    budget, seats = engine.max_batched_tokens, engine.max_sequences
    return BatchProblem(**problem, tokens=tokens, token_budget=budget, max_sequences=seats)  # type: ignore[arg-type]


def batch(policy: str, moment: State) -> BatchPlan:
    requests, counts, engine = moment
    num, decision = counts.running + counts.waiting, Decision.empty(len(requests.blocks))
    compiled_policy(policy)(requests, np.arange(len(requests.blocks)), counts, engine, decision)
    return BatchPlan(np.where(decision.tokens[:num] > 0, decision.cache[:num], 0).astype(np.int8))


@pytest.mark.parametrize("prefill", [True, False])
@given(data=st.data())
def test_the_batch_is_the_optimum_of_the_program_and_worth_no_less_than_the_greedy_one(
    prefill: bool, data: st.DataObject
) -> None:
    moment = data.draw(moments(prefill))
    stated, batches = program(*moment), {name: batch(name, moment) for name in (EXACT, "apt-serve")}
    assert batches[EXACT].violations(stated) == []
    best = solve(stated).value
    assert best is not None
    assert batches[EXACT].value(stated) == pytest.approx(best, rel=1e-9)
    assert batches[EXACT].value(stated) >= batches["apt-serve"].value(stated) * (1 - 1e-12)


@given(data=st.data())
def test_of_batches_worth_the_same_none_takes_fewer_kv_blocks(data: st.DataObject) -> None:
    """Looks at every set of running requests; pending times that differ by less than a millisecond are the same."""
    moment = data.draw(moments(prefill=False))
    running, stated = moment[1].running, program(*moment)
    assume(running <= 8)
    every = (np.arange(2**running)[:, None] >> np.arange(running)) & 1
    values, blocks = every @ stated.pending_s, every @ stated.kv_blocks
    best = values[blocks <= stated.memory_blocks].max()
    taken = batch(EXACT, moment).choice != 0
    if stated.kv_blocks.sum() > stated.memory_blocks:  # where all fits all go on
        assert stated.kv_blocks[taken].sum() == blocks[np.isclose(values, best, rtol=1e-9, atol=0)].min()


@given(problem=problems(max_requests=7, rows=None))
def test_the_solver_for_compiled_code_finds_what_the_batch_solver_finds(problem: BatchProblem) -> None:
    assert alone(problem) == pytest.approx(solve(problem).value, rel=1e-12)


@pytest.mark.parametrize("family", ["early", "overload", "bursty", "agentic"])
def test_the_solver_for_compiled_code_agrees_on_larger_problems(family: str) -> None:
    for seed in range(4):
        recipe = {"requests": 300, "memory_share": 0.2, "rho": 0.5, "attention": "mha", "rows": seed % 2 == 1, "seed": seed}
        problem = generate(BatchRecipe(family=family, **recipe))  # type: ignore[arg-type]
        found = BatchSolver(300).solve(
            problem.pending_s, problem.kv_blocks, problem.hidden_blocks, problem.hidden_penalty_s, problem.memory_blocks,
            tokens=problem.tokens, token_budget=problem.token_budget, max_sequences=problem.max_sequences,
        )  # fmt: skip
        assert alone(problem) == pytest.approx(found.value, rel=1e-12)


def test_where_its_search_ends_early_it_keeps_a_plan_no_worse_than_the_greedy_and_claims_no_proof() -> None:
    problem = generate(BatchRecipe(family="bursty", requests=1000, memory_share=0.2, rho=1.0, attention="mha", rows=True, seed=8))
    proven, plan = alone_with_proof(problem)
    assert not proven
    assert greedy_plan(problem, fill=True).value(problem) <= plan.value(problem) < solve(problem, method="lp").bound


def alone(problem: BatchProblem) -> float:
    proven, plan = alone_with_proof(problem)
    assert proven
    return plan.value(problem)


def alone_with_proof(problem: BatchProblem) -> tuple[bool, BatchPlan]:
    choice = np.zeros(problem.num_requests, np.int8)
    proven = solve_alone(
        problem.pending_s.copy(), problem.kv_blocks.copy(), problem.hidden_blocks.copy(), problem.hidden_penalty_s.copy(),
        problem.tokens_taken.copy(), problem.memory_blocks,
        NO_LIMIT if problem.token_budget is None else problem.token_budget,
        NO_LIMIT if problem.max_sequences is None else problem.max_sequences, choice,
    )  # fmt: skip
    plan = BatchPlan(choice)
    assert plan.violations(problem) == []
    return proven, plan


def test_the_memory_is_filled_by_the_best_set_not_by_the_densest_requests() -> None:
    requests = state((0, 480, 3.0, 0), (0, 240, 2.5, 0), (0, 160, 2.0, 0))
    assert chosen(requests, Counts(0, 3, 0), hidden_ratio=0.0) == "-KK"
    assert chosen(requests, Counts(0, 3, 0), EXACT, hidden_ratio=0.0) == "K-K"


def test_where_pending_times_differ_by_microseconds_the_largest_context_is_freed() -> None:
    requests = state((304, 1, 0.1002, KV), (288, 1, 0.1, KV), (16, 1, 0.1, KV))
    assert chosen(requests, Counts(3, 0, 0), EXACT, hidden_ratio=0.0, free_blocks=0, total_blocks=38) == "xKK"


def test_requests_that_wait_for_nothing_yet_are_not_preempted_for_nothing() -> None:
    requests = state((304, 1, 0.0, KV), (288, 1, 0.0, KV), (16, 1, 0.0, KV))
    assert chosen(requests, Counts(3, 0, 0), EXACT, hidden_ratio=0.0, free_blocks=1) == "xKK"
    assert chosen(requests, Counts(3, 0, 0), EXACT, hidden_ratio=0.0, free_blocks=3) == "KKK"


def test_a_violator_that_needs_no_block_is_served() -> None:
    requests = state((8, 4, 50.0, KV), (0, 400, 0.0, 0))
    assert chosen(requests, Counts(0, 2, 0), EXACT, ttft_slo_s=1.0, tbt_slo_s=1.0, hidden_ratio=0.0) == "KK"


def test_violators_come_last_but_are_served_if_memory_is_left() -> None:
    requests = state((0, 400, 50.0, 0), (0, 400, 0.5, 0))
    assert chosen(requests, Counts(0, 2, 0), EXACT, ttft_slo_s=1.0, hidden_ratio=0.0) == "-K"
    assert chosen(requests, Counts(0, 2, 0), EXACT, ttft_slo_s=1.0, hidden_ratio=0.0, total_blocks=60, free_blocks=60) == "KK"


def test_the_kind_of_iteration_and_cache_switches_are_those_of_apt_serve() -> None:
    assert chosen(state((32, 1, 3.0, KV), (0, 32, 2.0, 0)), Counts(1, 1, 0), EXACT) == "K-"
    assert chosen(state((32, 1, 1.0, KV), (0, 32, 2.0, 0)), Counts(1, 1, 0), EXACT) == "-K"
    assert chosen(state((32, 1, 5.0, HIDDEN), (32, 1, 5.0, KV)), Counts(2, 0, 0), EXACT) == "xK"
    assert chosen(state((608, 1, 5.0, HIDDEN), (608, 1, 4.0, HIDDEN)), Counts(2, 0, 0), EXACT) == "HH"
    assert chosen(state((64, 8, 9.0, HIDDEN), (64, 8, 9.0, KV)), Counts(0, 2, 0), EXACT) == "HK"
    assert chosen(state((0, 300, 9.0, 0), (0, 8, 0.001, 0)), Counts(0, 2, 0), EXACT, max_batched_tokens=100) == "K-"


@given(workload=workloads(max_conversations=6, max_turns=3), spare=st.integers(0, 30))
def test_a_simulation_conserves_requests_tokens_and_blocks(workload: Workload, spare: int) -> None:
    blocks = int(-(-workload.peak_tokens.max() // 16)) + spare
    plan = make_plan(
        ["mixed"], kv_blocks=max(blocks, 1), policy="collocated", parameters={"oracle": 0, "admission": 0}, batching=EXACT,
        engine=EngineSpec(max_batched_tokens=64, max_sequences=6), rho_s_per_block=1e-4,
    )  # fmt: skip
    log = simulate(plan, workload)  # raises where a law is broken
    assert log.violations(workload) == []
