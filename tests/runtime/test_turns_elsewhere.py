"""Policies that have later turns computed elsewhere, on real workers: the simulator moves the same, and no token changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from factories import make_plan, make_workload
from undisturbed import exact_setups, run_on, undisturbed_tokens

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Assignment, Plan, PlanPlacement
from optsched.domain.scenario import EngineSpec
from optsched.runtime.fleet import Fleet
from optsched.simulator.simulate import simulate

CONVERSATIONS = [[(40, 6), (5, 4), (9, 3)], [(30, 1), (7, 2), (20, 1), (3, 2)], [(12, 1)], [(60, 5), (0, 3)], [(17, 2), (8, 1)]]
WORKLOAD = make_workload(CONVERSATIONS, [0.0, 0.0, 0.01, 0.02, 0.03], gap_s=0.02)
LATER = WORKLOAD.turn_in_conversation > 0
PLAN = make_plan(["prefill", "decode", "decode"], kv_blocks=60, engine=EngineSpec(max_batched_tokens=32, max_sequences=4))
TOKENS = undisturbed_tokens(WORKLOAD)


def placed_by(policy: str, **parameters: float) -> Plan:
    return PLAN.replace(placement=PlanPlacement(policy=policy, parameters=parameters))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(exact_setups(PLAN, WORKLOAD)) as started:
        yield started


def checked(fleet: Fleet, plan: Plan) -> ExecutionLog:
    log, tokens = run_on(fleet, plan, WORKLOAD)
    assert log.violations(WORKLOAD) == []
    assert tokens.tolist() == TOKENS.tolist()
    return log


def moves(log: ExecutionLog) -> list[tuple[int, bool, bool]]:
    """Return which conversation moved in which direction, without saying which decoder it was."""
    columns = (log.transfers.conversation.tolist(), log.transfers.source.tolist(), log.transfers.target.tolist())
    return sorted((conversation, source == 0, target == 0) for conversation, source, target in zip(*columns, strict=True))


def test_full_disaggregation_computes_every_turn_anew_on_the_prefiller_and_hands_it_over(fleet: Fleet) -> None:
    plan = placed_by("full-disaggregation")
    log = checked(fleet, plan)
    assert np.all(log.prefill_replica == 0)
    ended = {1: 0, 2: 1, 4: 1}  # last turns of one token are over with the prefill
    due = Counter({conversation: len(turns) - ended.get(conversation, 0) for conversation, turns in enumerate(CONVERSATIONS)})
    due -= Counter({2: 0})
    assert Counter(log.transfers.conversation.tolist()) == +due
    assert moves(log) == moves(simulate(plan, WORKLOAD))
    prompts = (WORKLOAD.context_before + WORKLOAD.new_tokens).sum()
    assert log.steps.prefill_tokens[log.steps.replica == 0].sum() == prompts
    assert sum(event.kind == "dropped" for event in log.events) == LATER.sum()


def test_turns_sent_away_wrongly_visit_the_prefiller_and_come_home_with_what_was_added(fleet: Fleet) -> None:
    plan = placed_by("per-turn-emulated", wrong_share=1.0)
    log = checked(fleet, plan)
    assert np.all(log.prefill_replica[LATER] == 0)
    assert moves(log) == moves(simulate(plan, WORKLOAD))
    assert not log.events
    block_bytes = 16 * PLAN.llms[0].shape.kv_bytes_per_token * 2  # float64 in place of float32
    first = {int(c): min(log.transfers.start_s[log.transfers.conversation == c]) for c in set(log.transfers.conversation)}
    returns = (log.transfers.source == 0) & (log.transfers.start_s > [first[int(c)] for c in log.transfers.conversation])
    assert returns.sum() > 0
    assert log.transfers.bytes[returns].max() <= 3 * block_bytes  # the blocks that 20 tokens change, not the whole cache


def test_per_turn_scheduling_with_predictions_yields_the_same_tokens(fleet: Fleet) -> None:
    log = checked(fleet, placed_by("per-turn", error=0.5))
    assert len(log.transfers.start_s) >= 4


def test_emulated_shares_between_none_and_all_send_the_turns_that_the_simulator_sends(fleet: Fleet) -> None:
    plan = placed_by("per-turn-emulated", wrong_share=0.4, seed=5)
    log = checked(fleet, plan)
    assert moves(log) == moves(simulate(plan, WORKLOAD))
    sent = Counter((log.prefill_replica[LATER] == 0).tolist())
    assert min(sent[True], sent[False]) > 0


def test_caches_that_wait_for_each_others_room_do_not_wait_for_ever() -> None:
    """Each of two replicas of nine blocks holds a prompt of six that is to decode on the other."""
    work = make_workload([[(96, 40)], [(96, 40)]], [0.0, 0.0])
    plan = make_plan(["mixed", "mixed"], kv_blocks=9, engine=EngineSpec(max_batched_tokens=32, max_sequences=4))
    crossed = (Assignment(conversation=0, prefill="r0", decode="r1"), Assignment(conversation=1, prefill="r1", decode="r0"))
    plan = plan.replace(placement=PlanPlacement(policy="optimised", assignments=crossed))
    with Fleet(exact_setups(plan, work)) as fleet:
        log, tokens = run_on(fleet, plan, work)
    assert log.violations(work) == []
    assert tokens.tolist() == undisturbed_tokens(work).tolist()
