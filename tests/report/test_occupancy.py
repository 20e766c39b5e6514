"""Spans and cache occupancy are what the log says, and what the simulator's own books say."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_plan, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.scenario import EngineSpec, Role
from optsched.domain.workload import Workload
from optsched.report.occupancy import occupancy
from optsched.report.spans import stays
from optsched.simulator.simulate import simulate

TWO = make_workload([[(100, 50), (20, 70)], [(60, 40)]], [0.0, 0.05], gap_s=0.5)


def test_a_conversation_s_stays_are_its_prefill_its_transfer_and_its_turns_on_the_decoder() -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, TWO)
    mine = [stay for stay in stays(log, TWO) if stay.spans[0].conversation == 0]
    assert [stay.replica for stay in mine] == [0, 1]
    assert [[(span.kind, span.number) for span in stay.spans] for stay in mine] == [
        [("prefill", 0)],
        [("transfer", 0), ("decode", 0), ("prefill", 1), ("decode", 1)],
    ]
    move, first, again, last = mine[1].spans
    assert (move.start_s, move.end_s) == (log.transfers.start_s[0], log.transfers.end_s[0])
    assert (first.start_s, first.end_s) == (move.end_s, log.end_s[0])
    assert (again.start_s, again.end_s) == (log.start_s[1], log.first_token_s[1])
    assert (last.start_s, last.end_s) == (log.first_token_s[1], log.end_s[1])


def test_the_cache_grows_moves_waits_and_is_freed() -> None:
    plan = make_plan(["prefill", "decode"])
    alone = make_workload([[(100, 50), (20, 70)]], [0.0], gap_s=0.5)
    log = simulate(plan, alone)
    source, target = occupancy(log, alone, 2)
    start_s, end_s = log.transfers.start_s[0], log.transfers.end_s[0]
    assert source.at(0.5 * (log.start_s[0] + log.first_token_s[0])) == pytest.approx(50)
    during_s = 0.5 * (start_s + end_s)
    assert (source.at(during_s), target.at(during_s)) == (pytest.approx(100), pytest.approx(100))
    assert source.at(end_s) == pytest.approx(0, abs=1e-6)
    assert target.at(log.end_s[0] + 0.25) == pytest.approx(149)  # between the turns; the 50th token is computed with the next
    assert target.at(log.first_token_s[1]) == pytest.approx(170)
    assert target.peak == pytest.approx(239)
    assert target.at(log.end_s[1]) == 0


def test_a_visit_keeps_the_copy_at_home_and_takes_room_where_it_goes() -> None:
    plan = make_plan(["prefill", "decode"], policy="per-turn-emulated", parameters={"wrong_share": 1.0})
    work = make_workload([[(100, 5), (20, 7)]], [0.0])
    log = simulate(plan, work)
    away, home = occupancy(log, work, 2)
    assert home.at(log.first_token_s[1] - 1e-6) == pytest.approx(104)
    assert away.at(log.first_token_s[1]) == pytest.approx(125)
    assert away.at(log.end_s[1]) == 0
    assert home.peak == pytest.approx(131)


def test_a_dropped_cache_is_gone_until_it_is_computed_anew() -> None:
    plan = make_plan(["prefill", "decode"], policy="full-disaggregation")
    work = make_workload([[(100, 5), (20, 7)]], [0.0], gap_s=1.0)
    log = simulate(plan, work)
    prefiller, decoder = occupancy(log, work, 2)
    assert decoder.at(log.arrival_s[1] - 0.5) == pytest.approx(104)
    assert decoder.at(log.arrival_s[1]) == pytest.approx(0, abs=1e-6)
    assert prefiller.peak == pytest.approx(125)


ROLES: list[tuple[tuple[Role, ...], str]] = [
    (("mixed",), "collocated"), (("prefill", "decode"), "conserve"), (("prefill", "decode", "decode"), "full-disaggregation"),
    (("prefill", "decode", "decode"), "per-turn"),
]  # fmt: skip


@settings(max_examples=40)
@given(workload=workloads(), setting=st.sampled_from(ROLES), record=st.booleans())
def test_caches_start_and_end_empty_and_hold_what_every_step_reads(
    workload: Workload, setting: tuple[tuple[Role, ...], str], record: bool
) -> None:
    roles, policy = setting
    plan = make_plan(list(roles), policy=policy, kv_blocks=4000, engine=EngineSpec(max_batched_tokens=64, max_sequences=6))
    log = simulate(plan, workload, record_tokens=record)
    caches = occupancy(log, workload, len(roles))
    for cache in caches:
        assert cache.at(log.makespan_s) == 0
        assert min(cache.after.min(initial=0), cache.before.min(initial=0)) > -1e-3
        assert cache.peak <= int(workload.peak_tokens.sum())
    if not record:
        return
    # A step reads the caches of those who decode; with their times known the picture holds at least that.
    steps = log.steps
    for index in range(len(steps.end_s)):
        held = caches[int(steps.replica[index])].at(float(steps.start_s[index]))
        assert held >= 0.9 * int(steps.kv_tokens[index]) - 16


def test_what_was_preempted_is_gone_until_the_next_token() -> None:
    work = make_workload([[(40, 60)], [(40, 60)], [(40, 60)]], [0.0, 0.0, 0.0])
    plan = make_plan(["mixed"], policy="collocated", kv_blocks=14, parameters={"oracle": 0, "admission": 0})
    log = simulate(plan, work)
    assert log.preemptions > 0
    (cache,) = occupancy(log, work, 1)
    assert cache.peak <= 14 * 16
    event = log.events[0]
    assert cache.at(event.time_s) < cache.at(event.time_s - 1e-6) - 40


@given(edges=st.integers(1, 50))
def test_no_peak_is_lost_between_columns(edges: int) -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, TWO)
    for cache in occupancy(log, TWO, 2):
        assert cache.columns(np.linspace(0, log.makespan_s, edges + 1)).max() == pytest.approx(cache.peak)
