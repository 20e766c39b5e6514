"""Refit the step laws of a gpu from the log of an execution on real workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optsched import catalog
from optsched.cost.calibrate import FitReport, fit_step_law
from optsched.cost.jitter import fit_shared_law
from optsched.cost.tables import step_law
from optsched.domain.hardware import Gpu, Tier
from optsched.domain.llm import Llm
from optsched.domain.log import ExecutionLog, Steps
from optsched.domain.plan import Plan, PlanReplica
from optsched.errors import ProblemError


@dataclass(frozen=True, slots=True)
class LogFit:
    """A step law fitted to the steps that the replicas of one llm and size executed."""

    llm: Llm
    tp: int
    power_cap_w: float
    report: FitReport


def logged_gpus(plan: Plan) -> tuple[str, ...]:
    """Return the names of the gpus that a plan's replicas stand on."""
    return tuple(sorted({replica.gpu for replica in plan.replicas}))


def fit_log(log: ExecutionLog, plan: Plan, gpu: Gpu, *, seed: int = 0) -> tuple[LogFit, ...]:
    """Fit a step law to each llm (and tp) that a gpu's replicas served.

    Parameters
    ----------
    log
        What workers did; a step lasts from the end of the one before, if there was no pause, so scheduling is included.
    plan
        The plan that they executed.
    gpu
        Whose replicas are used; its model without measured laws is the prior.
    seed
        Decides which fifth of the steps is held out.

    Raises
    ------
    ProblemError
        If the log is a simulation, no replica stands on the gpu, its replicas run at several power caps, or there are too
        few steps.
    """
    if log.origin != "observed":
        raise ProblemError(
            "the log is of a simulation, whose times are this model's own; give the log of 'optsched run', which workers executed"
        )
    if gpu.name not in (known := logged_gpus(plan)):
        raise ProblemError(f"no replica of the log stands on {gpu.name}; choose --tier among {', '.join(known)}")
    chosen = [(index, each) for index, each in enumerate(plan.replicas) if each.gpu == gpu.name and each.pp == 1]
    if len(caps := sorted({each.power_cap_w for _, each in chosen})) > 1:
        listed = ", ".join(f"{cap:g}" for cap in caps)
        raise ProblemError(f"replicas on {gpu.name} ran at {listed} W; a step law holds at one power cap, so log one at a time")
    shapes = {each.name: each.shape for each in plan.llms}
    kinds = sorted({(each.llm, each.tp) for _, each in chosen})
    return tuple(_fit_kind(log, gpu, shapes[llm], tp, caps[0], _indices(chosen, llm, tp), seed) for llm, tp in kinds)


def _indices(chosen: list[tuple[int, PlanReplica]], llm: str, tp: int) -> list[int]:
    return [index for index, each in chosen if (each.llm, each.tp) == (llm, tp)]


def _fit_kind(log: ExecutionLog, gpu: Gpu, llm: Llm, tp: int, cap_w: float, replicas: list[int], seed: int) -> LogFit:
    mine = np.isin(log.steps.replica, replicas)
    steps = _chosen(log.steps, lambda column: column[mine])
    bare = gpu.replace(step_laws=())
    prior = step_law(llm, Tier(bare, cap_w), tp=tp, link=catalog.link(bare.datasheet.interconnect))
    fit = fit_shared_law if gpu.shared_host else fit_step_law
    return LogFit(llm, tp, cap_w, fit(steps, steps.end_s - steps.start_s, prior=prior, seed=seed))


def _chosen(steps: Steps, choose: Callable[[np.ndarray], np.ndarray]) -> Steps:
    return Steps(**{name: choose(getattr(steps, name)) for name in Steps.__dataclass_fields__})
