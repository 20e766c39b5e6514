"""Whether a fleet keeps its targets: how many seeds it takes, and what room to spare is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched import catalog
from optsched.domain.accounting import measure_plan
from optsched.domain.scenario import FleetEntry
from optsched.planner import capacity_trials
from optsched.planner.capacity_pools import pools_of
from optsched.planner.capacity_strain import WIDEST, Trial, tried, worst_target
from optsched.planner.capacity_trials import FIRST, MOST_MISSES, ROOM, SEEDS, SOME, UNBROKEN, judged, suitable_policies
from optsched.planner.plan import drafts_of
from optsched.simulator.simulate import simulate

CHAT = catalog.scenario("chat-l4")


def verdict(
    monkeypatch: pytest.MonkeyPatch, strains: list[float], most_misses: int = MOST_MISSES, unbroken: int = UNBROKEN
) -> tuple[bool, int]:
    """Judge a fleet whose one target is strained so much by one seed after the other; return the answer and the seeds asked."""
    asked = iter(strains)
    count = 0

    def trial(*_: object) -> Trial:
        nonlocal count
        count += 1
        strain = next(asked)
        return Trial(("ttft", 0.1 if strain > 1 else -0.05), {"ttft": strain})

    monkeypatch.setattr(capacity_trials, "tried", trial)
    kept, worst = judged(None, range(len(strains)), most_misses, unbroken)  # type: ignore[arg-type]
    assert (worst[1] <= 0) == kept
    return kept, count


def test_a_fleet_with_room_to_spare_needs_few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(monkeypatch, [0.5] * SEEDS) == (True, FIRST)
    assert verdict(monkeypatch, [0.99 / ROOM] * SEEDS) == (True, FIRST)


def test_a_latency_just_below_its_target_is_watched_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(monkeypatch, [1.01 / ROOM] * SEEDS) == (True, UNBROKEN)
    assert verdict(monkeypatch, [0.5, 0.9, 0.5, 0.9] * SEEDS) == (True, UNBROKEN)


def test_few_of_many_seeds_may_miss_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = [0.95], [1.1]
    assert verdict(monkeypatch, bad + good * SEEDS) == (False, 1)
    assert verdict(monkeypatch, good + bad + good * (SEEDS - 2)) == (True, SEEDS)
    assert verdict(monkeypatch, good + bad + good * (SOME - 3) + bad + good * SEEDS) == (False, SOME)
    late = good * (SOME + 1) + bad + good * 10 + bad + good * 30 + bad
    assert verdict(monkeypatch, late + good * SEEDS) == (False, len(late))
    assert verdict(monkeypatch, [*late[:-1], *good * (SEEDS - len(late) + 1)]) == (True, SEEDS)


def test_what_must_be_beyond_doubt_misses_nothing_with_any_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = [0.95], [1.1]
    assert verdict(monkeypatch, good * SEEDS, 0, SEEDS) == (True, SEEDS)
    assert verdict(monkeypatch, good * (SEEDS - 1) + bad, 0, SEEDS) == (False, SEEDS)
    assert verdict(monkeypatch, [0.5] * SEEDS, 0, SEEDS) == (True, FIRST)


def test_the_rule_tells_fleets_apart_as_it_says() -> None:
    """The chance to pass by the seeds that a fleet keeps its targets with, drawn; its room is never enough to stop early."""
    rng = np.random.default_rng(1)
    passed = {}
    for share in (0.90, 0.925, 0.98, 0.99):
        missed = rng.random((20_000, SEEDS)) > share
        soon = missed[:, 0] | (missed[:, :SOME].sum(axis=1) > 1)
        late = missed.any(axis=1) & (missed[:, :UNBROKEN].any(axis=1)) & (missed.sum(axis=1) > MOST_MISSES)
        passed[share] = 1 - float((soon | late).mean())
    assert passed[0.90] < 0.10
    assert passed[0.925] < 0.21
    assert passed[0.98] > 0.85
    assert passed[0.99] > 0.95


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 50), st.sampled_from([0.1, 0.2, 0.3]))
def test_a_target_is_kept_at_its_strain_and_not_below(seed: int, rate: float) -> None:
    (pool,) = pools_of(CHAT, None, None, rate, None)
    pool = pool.with_seed(seed)
    fixed = pool.scenario(CHAT).replace(fleet=(FleetEntry(gpu="l4", role="mixed", count=1),))
    draft = drafts_of(fixed.replace(policy=suitable_policies(fixed)[0]), pool.llm, pool.described, "collocated")[0]
    trial = tried(draft, pool)
    log = simulate(draft, pool.workload, record_steps=False, record_tokens=False)
    slo = draft.slo
    assert trial.worst == worst_target(slo, measure_plan(draft, log, pool.workload).slo_violations)
    assert max(trial.strains.values()) < WIDEST
    for name, strain in trial.strains.items():
        assert (strain <= 1.0) == (measure_plan(draft, log, pool.workload).slo_violations[name] <= 0.05)
        for factor, kept in ((strain * 1.001, True), (strain * 0.99, False)):
            target = getattr(slo, name)
            held = draft.replace(slo=slo.replace(**{name: target.replace(seconds=target.seconds * factor)}))
            assert (measure_plan(held, log, pool.workload).slo_violations[name] <= 0.05 + 1e-12) == kept
