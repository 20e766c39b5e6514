"""A step in which the policy only evicted is decided again at once, by simulator and workers alike."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from factories import make_plan, make_workload
from jaxtyping import Int64
from test_replay import MODELS, OPT, SlowClock, serve

from optsched.batching.policies.dispatch import Policy, _sample
from optsched.batching.state import KV, Counts, Decision, Engine, Requests
from optsched.compiled import address_of, compile_for, kernel
from optsched.domain.journal import Decided
from optsched.domain.plan import Plan, PlanLlm
from optsched.domain.workload import Workload
from optsched.errors import SolveError
from optsched.runtime.cache import BlockPool
from optsched.runtime.recorder import Recorder
from optsched.runtime.replica import Replica
from optsched.runtime.setups import worker_setups
from optsched.simulator.replay import replay
from optsched.simulator.simulate import simulate

Array = np.ndarray


@kernel
def one_by_one(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Evict somebody, one at a time, while anybody but the last of the queue holds a cache; then serve the last."""
    n = counts.running + counts.waiting
    for slot in queue[: n - 1]:
        if requests.blocks[slot] > 0:
            decision.evict[slot] = 1
            return 0
    if n == 0:
        return 0
    slot = queue[n - 1]
    decision.tokens[slot] = min(requests.new_tokens[slot], engine.max_batched_tokens)
    decision.cache[slot] = KV
    return 1


@kernel
def never(requests: Requests, queue: Int64[Array, " q"], counts: Counts, engine: Engine, decision: Decision) -> int:
    """Evict everybody, always."""
    decision.evict[queue] = 1
    return 0


@cache
def address(policy: Policy) -> int:
    """Return the address of a policy, compiled once."""
    return address_of(compile_for(policy, _sample()), _sample())


def use(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the simulator ask another policy than the plan's."""
    for module in ("run", "replay"):
        monkeypatch.setattr(f"optsched.simulator.{module}.policy_address", lambda _: address(policy))


def crowd() -> tuple[Plan, Workload]:
    """Return turns that come to a replica while it serves others."""
    work = make_workload([[(30, 6), (10, 3)], [(40, 5), (10, 4)], [(20, 4)], [(50, 2)]], [0.0, 0.011, 0.023, 0.1], gap_s=0.01)
    plan = make_plan(["mixed"], kv_blocks=40, policy="collocated", batching="vllm")
    return plan.replace(llms=(PlanLlm(name="tiny", shape=OPT),)), work


def test_who_is_evicted_for_is_served_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    use(one_by_one, monkeypatch)
    plan, work = crowd()
    log = simulate(plan, work)
    assert log.preemptions > 0
    paused = log.steps.start_s[1:] - log.steps.end_s[:-1] > 1e-12
    # Only an arrival ends a pause.
    assert np.isclose(log.steps.start_s[1:][paused][:, None], log.arrival_s, rtol=0, atol=1e-12).any(axis=1).all()


def test_a_worker_decides_again_at_the_same_moment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    use(one_by_one, monkeypatch)
    plan, work = crowd()
    (setup,) = worker_setups(plan, work, 0, "cpu")
    pool = BlockPool(OPT, 40, 16, torch.float32, "cpu")
    replica = Replica(0, MODELS[id(OPT)], pool, setup.limits, 0, SlowClock(1e-3), Recorder(keep_journal=True))
    monkeypatch.setattr(replica, "_decide", one_by_one)
    journal = serve(replica, work)
    observed = [entry for entry in journal if isinstance(entry, Decided)]
    assert replay(plan, work, 0, journal) == observed
    assert any(entry.evicted and entry.scheduled for entry in observed)


def test_a_policy_that_only_evicts_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    use(never, monkeypatch)
    plan, work = crowd()
    with pytest.raises(SolveError, match="4 conversations wait for cache that is never freed"):
        simulate(plan, work)
