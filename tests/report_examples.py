"""A plan and its execution, as reports take them."""

from __future__ import annotations

from dataclasses import replace

from factories import make_plan

from optsched import files
from optsched.domain.accounting import measure_plan
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Certificate, Plan, PlanWorkload
from optsched.domain.scenario import LatencyTarget
from optsched.domain.workload import Arrivals, Recipe, Workload
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

_LENGTHS = {"quantiles": ((0, 40), (1, 160))}
_RECIPE = Recipe.model_validate(
    {"name": "short", "title": "short", "origin": "invented", "turn": [{"new_tokens": _LENGTHS, "output_tokens": _LENGTHS}] * 3}
)


def planned(seconds: float = 0.5) -> tuple[Plan, Workload, ExecutionLog]:
    """Return a plan with a TTFT target of some seconds, its workload and its simulation."""
    workload = PlanWorkload(
        recipe=_RECIPE, sha256=files.canonical_sha256(_RECIPE), seed=1, conversations=24,
        arrivals=Arrivals(process="poisson", rate_per_s=8, seed=1),
    )  # fmt: skip
    draft = make_plan(["prefill", "prefill", "decode", "decode", "decode"], kv_blocks=120)
    slo = draft.slo.replace(
        ttft=LatencyTarget(percentile=95, seconds=seconds), ttfet=LatencyTarget(percentile=95, standalone_factor=8)
    )
    draft = draft.replace(workload=workload, slo=slo)
    conversations = load_workload(workload)
    log = simulate(draft, conversations, seed=1)
    certificate = Certificate(
        evaluator="event-v1", objective="energy of the whole run [J]", value=3200.0, bound=2500.0, gap=0.21875,
        status="FEASIBLE", solver="policy",
    )  # fmt: skip
    plan = draft.replace(predicted=measure_plan(draft, log, conversations), certificate=certificate)
    return plan, conversations, log


def slowed(log: ExecutionLog, factor: float) -> ExecutionLog:
    """Return an observed log in which every step took longer by a factor, each from its own start."""
    steps = log.steps
    return replace(log, origin="observed", steps=replace(steps, end_s=steps.start_s + factor * (steps.end_s - steps.start_s)))
