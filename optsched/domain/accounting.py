"""Energy and figures of a plan's execution, for both clocks."""

from __future__ import annotations

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.results import Clock, Metrics, StandaloneLatency, measure
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload


def energy_j(plan: Plan, log: ExecutionLog) -> float | None:
    """Return the energy of all replicas over the execution: idle power throughout, and the energy above it; None if unmetered."""
    if log.dynamic_j is None:
        return None
    idle_w = sum(replica.coefficients.idle_w for replica in plan.replicas)
    return float(idle_w * log.makespan_s + log.dynamic_j.sum())


def alone_of(plan: Plan, workload: Workload) -> StandaloneLatency:
    """Return the latencies with nothing else running that a plan's relative targets refer to."""
    reference = plan.slo.standalone
    return standalone_latency(workload, reference.coefficients, reference.max_batched_tokens)


def measure_plan(
    plan: Plan, log: ExecutionLog, workload: Workload, clock: Clock = "true", alone: StandaloneLatency | None = None
) -> Metrics:
    """Compute the figures of one execution of a plan.

    Parameters
    ----------
    plan, log, workload
        What was planned, what happened, and what was to be executed.
    clock
        ``true`` or ``paper``.
    alone
        What `alone_of` says, where it is known already.
    """
    standalone = alone or alone_of(plan, workload)
    cost = sum(replica.usd_per_hour for replica in plan.replicas)
    return measure(log, workload, standalone, plan.slo, clock=clock, energy_j=energy_j(plan, log), cost_usd_per_hour=cost)
