"""Workers and simulator apply the same policies by code of their own: on the worker's clock both decide alike, step by step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched import catalog
from optsched.batching.policies import POLICIES
from optsched.domain.journal import Decided, Entry, TakenOut
from optsched.domain.llm import Llm
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanLlm
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.planner.plan import plan_scenario
from optsched.runtime.cache import BlockPool
from optsched.runtime.cluster import _Run
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import StartTurn, TurnEnded
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.recorder import Clock, Recorder
from optsched.runtime.replica import Replica
from optsched.runtime.setups import worker_setups
from optsched.simulator.replay import replay

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))
from saboteur import drawn_workload, plan_of
from small_llms import OPT, QWEN3, QWEN3_ODD

torch.set_num_threads(1)
MODELS = {id(llm): Transformer(llm, random_weights(llm, 2, torch.float32)) for llm in (OPT, QWEN3, QWEN3_ODD)}


class SlowClock(Clock):
    """A clock on which every look takes a while, so that targets are missed and steps take time."""

    def __init__(self, tick_s: float) -> None:
        self.zero_s, self.time_s, self.tick_s = 0.0, 0.0, tick_s

    def now(self) -> float:
        self.time_s += self.tick_s
        return self.time_s


def assert_decided_alike(plan: Plan, workload: Workload, journals: list[list[Entry]]) -> list[Decided]:
    found: list[Decided] = []
    for replica, journal in enumerate(journals):
        observed = [entry for entry in journal if isinstance(entry, Decided)]
        assert replay(plan, workload, replica, journal) == observed
        found += observed
    return found


def test_the_quickstart_is_decided_alike_by_workers_and_simulator() -> None:
    planned = plan_scenario(catalog.scenario("quickstart"))
    few = planned.workload.head(5, 2)
    setups = [replace(setup, keep_journal=True) for setup in worker_setups(planned.plan, few, 0, "cpu")]
    with Fleet(setups) as fleet:
        run = _Run(planned.plan, few, fleet, 0, "cpu")
        log = run.to_the_end(120.0, None)
    decided = assert_decided_alike(planned.plan, few, run.observed.journals)
    assert sum(1 for entry in decided if entry.scheduled) == log.iterations
    served = {planned.plan.replicas[replica].role for replica, journal in enumerate(run.observed.journals) if journal}
    assert served == {"prefill", "decode"}


MOVING = ("full-disaggregation", "per-turn-emulated", "per-turn", "conserve")


@pytest.fixture(scope="module")
def journalling() -> Iterator[Fleet]:
    """A prefiller and two decoders with small pools, whatever policy places conversations on them."""
    plan = plan_of("one prefiller", "conserve")
    setups = worker_setups(plan, make_workload([[(49, 8), (49, 8), (49, 8)]], [0.0]), 0, "cpu")
    with Fleet([replace(setup, keep_journal=True) for setup in setups]) as started:
        yield started


def moved_and_decided_alike(fleet: Fleet, policy: str, seed: int) -> tuple[ExecutionLog, list[list[Entry]]]:
    """Execute drawn conversations and have the simulator decide again; pools are so small that caches are evicted."""
    plan, workload = plan_of("one prefiller", policy), drawn_workload(np.random.default_rng([9, seed]))
    run = _Run(plan, workload, fleet, 0, "cpu")
    log = run.to_the_end(120.0, None)
    decided = assert_decided_alike(plan, workload, run.observed.journals)
    assert sum(1 for entry in decided if entry.scheduled) == log.iterations
    return log, run.observed.journals


@pytest.mark.parametrize("policy", MOVING)
@pytest.mark.parametrize("seed", [0, 1])
def test_turns_that_move_are_decided_alike_on_every_replica(journalling: Fleet, policy: str, seed: int) -> None:
    log, journals = moved_and_decided_alike(journalling, policy, seed)
    assert len(log.transfers.bytes)
    taken_out = sum(isinstance(entry, TakenOut) for journal in journals for entry in journal)
    assert (taken_out > 0) == (policy == "full-disaggregation") or policy.startswith("per-turn")


@pytest.mark.slow
@pytest.mark.parametrize("policy", MOVING)
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_drawn_turns_that_move_are_decided_alike(journalling: Fleet, policy: str, seed: int) -> None:
    moved_and_decided_alike(journalling, policy, seed)


def serve(replica: Replica, workload: Workload) -> list[Entry]:
    """Run all conversations on one replica, two joining at each step, and return its journal."""

    def turn_of(turn: int) -> StartTurn:
        conversation, number = int(workload.conversation_of_turn[turn]), int(workload.turn_in_conversation[turn])
        last = turn + 1 == workload.first_turn[conversation + 1]
        sizes = int(workload.new_tokens[turn]), int(workload.output_tokens[turn])
        return StartTurn(conversation, turn, number, replica.clock.now(), *sizes, last)

    coming = [int(turn) for turn in workload.first_turn[:-1]]
    journal: list[Entry] = []
    for _ in range(60 * int((workload.new_tokens + workload.output_tokens).sum()) + 100):
        for turn in coming[:2]:
            replica.start_turn(turn_of(turn))
        coming = coming[2:]
        if not (coming or replica.has_work):
            break
        replica.step(0.0, lambda: 1)
        report = replica.recorder.report()
        journal += report.journal
        ended = [news.turn for news in report.news if isinstance(news, TurnEnded)]
        coming += [turn + 1 for turn in ended if turn + 1 < workload.first_turn[workload.conversation_of_turn[turn] + 1]]
    assert not replica.has_work
    return journal


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"density", "apt-serve-decay"}))
@settings(max_examples=10)
@given(
    llm=st.sampled_from([OPT, QWEN3, QWEN3_ODD]),
    workload=workloads(max_conversations=6, max_turns=3, max_new_tokens=60, max_output_tokens=12),
    spare=st.integers(0, 8),
    tick_s=st.sampled_from([1e-3, 0.2]),
)
def test_every_policy_decides_alike_in_a_worker_and_in_the_simulator(
    policy: str, llm: Llm, workload: Workload, spare: int, tick_s: float
) -> None:
    blocks = int(-(-workload.peak_tokens.max() // 16)) + spare
    engine = EngineSpec(max_batched_tokens=max(64, int(workload.peak_tokens.max())), max_sequences=8)
    plan = make_plan(["mixed"], kv_blocks=blocks, batching=policy, policy="collocated", engine=engine, rho_s_per_block=1e-4)
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=llm),))
    (setup,) = worker_setups(plan, workload, 0, "cpu")
    pool = BlockPool(llm, blocks, 16, torch.float32, "cpu")
    recorder = Recorder(keep_journal=True)
    replica = Replica(0, MODELS[id(llm)], pool, setup.limits, 0, SlowClock(tick_s), recorder)
    assert_decided_alike(plan, workload, [serve(replica, workload)])


def test_attain_does_not_schedule_a_waiting_request_whose_cache_makes_room_for_a_running_one() -> None:
    """Two blocks: one decodes past its first block while another, between two turns, holds the second."""
    workload = Workload(
        np.arange(5), np.zeros(5), np.array([0, 3, 6, 7, 8, 9]), np.array([1, 0, 0, 1, 0, 11, 1, 1, 1]),
        np.array([1, 1, 1, 3, 1, 2, 1, 1, 1]), np.zeros(9),
    )  # fmt: skip
    plan = make_plan(["mixed"], kv_blocks=2, batching="attain", policy="collocated", engine=EngineSpec(max_sequences=8))
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=OPT),))
    (setup,) = worker_setups(plan, workload, 0, "cpu")
    pool = BlockPool(OPT, 2, 16, torch.float32, "cpu")
    replica = Replica(0, MODELS[id(OPT)], pool, setup.limits, 0, SlowClock(1e-3), Recorder(keep_journal=True))
    decided = assert_decided_alike(plan, workload, [serve(replica, workload)])
    assert any(entry.evicted for entry in decided)


def test_a_cache_whose_turn_is_computed_elsewhere_is_not_evicted_in_the_replay_either() -> None:
    """Four blocks: one conversation keeps two of them while its turn is away, and another that needs three has to wait."""
    workload = make_workload([[(20, 2), (5, 2)], [(40, 2)]], [0.0, 0.0], gap_s=0.0)
    plan = make_plan(["mixed"], kv_blocks=4, policy="collocated", engine=EngineSpec(max_sequences=8))
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=QWEN3),))
    (setup,) = worker_setups(plan, workload, 0, "cpu")
    pool = BlockPool(QWEN3, 4, 16, torch.float32, "cpu")
    replica = Replica(0, MODELS[id(QWEN3)], pool, setup.limits, 0, SlowClock(1e-3), Recorder(keep_journal=True))
    replica.start_turn(StartTurn(0, 0, 0, 0.0, 20, 2, last=False))
    while replica.has_work:
        replica.step(0.0, lambda: 1)
    replica.park(0)
    replica.start_turn(StartTurn(1, 2, 0, 0.0, 40, 2, last=True))
    assert replica.step(0.0, lambda: 1) is None
    replica.drop(0)
    while replica.has_work:
        assert replica.step(0.0, lambda: 1) is not None
    decided = assert_decided_alike(plan, workload, [list(replica.recorder.report().journal)])
    assert [len(entry.scheduled) for entry in decided] == [1, 1, 0, 1, 1]


def test_the_replay_is_of_the_worker_s_own_clock() -> None:
    """Moved to other times, the same events are decided otherwise by a policy that looks at the clock."""
    workload = Workload(np.arange(4), np.zeros(4), np.arange(5), np.full(4, 40), np.full(4, 30), np.zeros(4))
    engine = EngineSpec(max_batched_tokens=128, max_sequences=8)
    plan = make_plan(["mixed"], kv_blocks=14, batching="apt-serve", policy="collocated", engine=engine, rho_s_per_block=1e-4)
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=QWEN3),))
    (setup,) = worker_setups(plan, workload, 0, "cpu")
    replica = Replica(
        0, MODELS[id(QWEN3)], BlockPool(QWEN3, 14, 16, torch.float32, "cpu"), setup.limits, 0, SlowClock(0.2), Recorder(keep_journal=True)
    )  # fmt: skip
    journal = serve(replica, workload)
    decided = assert_decided_alike(plan, workload, [journal])
    assert any(entry.evicted for entry in decided)
    sooner = [replace(e, now_s=e.now_s / 1e3, end_s=e.end_s / 1e3) if isinstance(e, Decided) else e for e in journal]
    assert [entry.scheduled for entry in replay(plan, workload, 0, sooner)] != [entry.scheduled for entry in decided]
