"""Simulate a plan on a workload."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import PlanError, SolveError, SpecError
from optsched.placement.policies import PER_TURN
from optsched.placement.room import refuse_what_cannot_fit
from optsched.simulator.record import log_of
from optsched.simulator.run import Run


def simulate(
    plan: Plan,
    workload: Workload,
    *,
    seed: int = 0,
    record_steps: bool = True,
    record_tokens: bool = True,
    coast: bool = True,
    check: bool = True,
    progress: Callable[[float], None] | None = None,
) -> ExecutionLog:
    """Execute a workload on a plan's replicas, on a virtual clock.

    Parameters
    ----------
    plan
        Replicas with their step laws, links, batching and placement policies.
    workload
        The conversations.
    seed
        Recorded in the log. Nothing is drawn at random: policies draw nothing, and how steps of a shared host scatter follows
        from their numbers (`optsched.placement.step_time.jitter`).
    record_steps
        Keep every step in the log (needed by `ExecutionLog.violations` for tokens and by calibration).
    record_tokens
        Keep the time of every output token in the log. Otherwise its `gaps` say what the gaps between them were: per turn the
        longest and the 99th percentile, exactly, and of all together the mean and percentiles to 0.1 %.
    coast
        Take steps whose content is known beforehand in one go. Otherwise the batching policy is asked about every step: the
        same execution, more slowly.
    check
        Have the conservation laws checked at the end.
    progress
        Called now and then with the share of conversations that ended.

    Returns
    -------
    ExecutionLog
        With the energy above idle of each replica.

    Raises
    ------
    PlanError
        If the plan contradicts itself.
    InfeasibleError
        If a conversation fits no decoder.
    SpecError
        If prompts are to share cache and the workload, or the blocks' size, does not allow it.
    SolveError
        If conversations wait for each other for ever, or a conservation law is broken.
    """
    if broken := plan.violations():
        raise PlanError(broken)
    refuse_what_cannot_fit(plan, workload)
    _refuse_broken_units(plan, workload)
    run = Run(plan, workload, record_steps, record_tokens, coast)
    run.to_the_end(progress)
    log = log_of(run, seed)
    if check:
        broken = log.violations(workload) if record_steps else []
        if np.any(run.state.replicas.free_blocks != run.state.replicas.total_blocks):
            broken.append("cache blocks were lost")
        if promised := int(run.state.counters[3]):
            broken.append(f"batching policy {plan.batching.policy!r} promised {promised} cache blocks that were not there")
        if broken:
            raise SolveError(f"The simulation broke a conservation law (a bug, please report it): {broken[0]}")
    return log


def _refuse_broken_units(plan: Plan, workload: Workload) -> None:
    unit, block = workload.prefix_block_tokens, plan.engine.block_tokens
    if plan.engine.prefix_caching and plan.placement.policy in PER_TURN:
        raise SpecError(
            f"true: prompts that share cache cannot leave it, as turns do under {plan.placement.policy!r}; leave it out",
            field="engine.prefix_caching",
        )
    if plan.engine.prefix_caching and workload.prefix_blocks is None:
        raise SpecError(
            "true: the workload does not say which prompts begin alike; use a trace that does (Mooncake's), or leave it out",
            field="engine.prefix_caching",
        )
    if plan.engine.prefix_caching and unit % block:
        raise SpecError(
            f"{block}: prompts share blocks of {unit} tokens; give a divisor of {unit}, or leave prefix_caching out",
            field="engine.block_tokens",
        )
