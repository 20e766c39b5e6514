"""What ``bench_workers.py`` runs: this machine calibrated, a plan on real workers, and a pool of cache too small on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optsched import catalog
from optsched.domain.accounting import measure_plan
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanWorkload
from optsched.domain.results import Metrics
from optsched.domain.scenario import FleetEntry, LatencyTarget, PlacementPolicyName, Scenario, Supply
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Arrivals, LengthQuantiles, Recipe, TurnRecipe, Workload
from optsched.errors import SolveError
from optsched.files import canonical_sha256
from optsched.planner.plan import drafts_of, plan_scenario
from optsched.planner.replan import with_batching
from optsched.report.accuracy import operation_classes, relative_errors
from optsched.runtime import execute
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

TIER = "local-cpu"
TIME_LIMIT_S = 300.0
FIGURES = {
    "TTFT mean": "ttft_s.mean", "TTFT p95": "ttft_s.p95", "TBT mean": "tbt_s.mean", "TBT p95": "tbt_s.p95",
    "TTFET mean": "ttfet_s.mean", "TTFET p95": "ttfet_s.p95", "makespan": "makespan_s", "tokens/s": "tokens_per_s",
}  # fmt: skip
"""What is compared, by its name in `relative_errors`."""
STEP_KINDS = ("prefill steps", "decode steps", "mixed steps", "transfers")
NEVER_S = 1e6
"""Seconds per block that a hidden cache is said to cost where none is wanted: no pending time outweighs them."""
BATCHINGS: Mapping[str, float | None] = {
    "vllm-chunked": None, "apt-serve": None, "apt-serve, hidden for nothing": 0.0, "apt-serve, KV only": NEVER_S
}  # fmt: skip
"""Batching policies, and what they are told that a block of hidden cache costs, in seconds; None: what the law says."""
CACHED = Recipe(
    name="short-requests",
    title="One turn, 24 to 40 tokens of prompt, 32 to 64 of output",
    origin="made up: hidden cache is rebuilt by arithmetic, which a CPU has little of; the shorter a context, the less it costs",
    turns=(
        TurnRecipe(
            new_tokens=LengthQuantiles(quantiles=((0, 24), (1, 40))), output_tokens=LengthQuantiles(quantiles=((0, 32), (1, 64)))
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan's prediction and what was measured, with the relative errors of `FIGURES` and `STEP_KINDS` that both have."""

    predicted: Metrics
    observed: Metrics
    errors: Mapping[str, float]
    log: ExecutionLog


def calibrate(folder: Path, llms: Sequence[str], seconds: float) -> list[list[str]]:
    """Measure this machine as ``make demo`` does, on the command's own seed, and plan with that from here on.

    Parameters
    ----------
    folder
        Takes the place of the user's own specs.
    llms
        To measure.
    seconds
        For each llm, start of the workers apart.

    Returns
    -------
    list of list of str
        Per llm: name, steps measured, error of held-out steps, slow-down with busy neighbours.
    """
    os.environ["OPTSCHED_MODELS"] = str(folder)
    (folder / "gpus").mkdir(parents=True)
    command = [sys.executable, "-m", "optsched.cli", "calibrate", "--tier", TIER, "--seconds", str(seconds), "--json"]
    named = [word for llm in llms for word in ("--llm", llm)]
    done = subprocess.run(
        [*command, *named, "--out", str(folder / "gpus" / f"{TIER}.toml")], check=True, stdout=subprocess.PIPE, text=True
    )
    return [
        [
            law["llm"], f"{law['num_steps']:,}", f"{law['heldout_mape']:.1%}",
            " / ".join(f"{factor:.2f}" for factor in law["busy_slowdown"]),
        ]
        for law in json.loads(done.stdout)["step_laws"]
    ]  # fmt: skip


def figure(metrics: Metrics, name: str) -> float:
    """Return one of `FIGURES`; NaN where it was not measured."""
    field, _, quantile = FIGURES[name].partition(".")
    value = getattr(metrics, field)
    value = getattr(value, quantile) if quantile else value
    return float("nan") if value is None else float(value)


def measured(plan: Plan, workload: Workload, seed: int) -> Outcome:
    """Execute a plan on real workers."""
    log = execute(plan, workload, seed=seed, time_limit_s=TIME_LIMIT_S)
    observed = measure_plan(plan, log, workload)
    found = relative_errors(plan.predicted, observed)
    errors = {name: found[key] for name, key in FIGURES.items() if key in found}
    errors |= {each.name: each.error for each in operation_classes(log, plan) if each.error is not None}
    return Outcome(plan.predicted, observed, errors, log)


def agentic(policy: PlacementPolicyName, rate_per_s: float, conversations: int, seed: int) -> tuple[Plan, Workload]:
    """Plan the quickstart's conversations: one replica that prefills and two that decode, or three mixed ones."""
    scenario = catalog.scenario("quickstart")
    assert scenario.workload is not None
    asked = scenario.replace(workload=scenario.workload.replace(conversations=conversations))
    planned = plan_scenario(asked, policy=policy, rate_per_s=rate_per_s, seed=seed)
    return planned.plan, planned.workload


def prompts_per_s(seed: int) -> float:
    """Return how many first prompts of the quickstart one replica computes per second, with nothing else running."""
    plan, workload = agentic("collocated", 1.0, 64, seed)
    reference = plan.slo.standalone
    alone = standalone_latency(workload, reference.coefficients, reference.max_batched_tokens)
    return 1.0 / float(alone.ttft_s[workload.first_turn[:-1]].mean())


@dataclass(frozen=True, slots=True)
class Scarce:
    """One mixed replica whose pool holds a few of the requests of `CACHED`.

    Attributes
    ----------
    llm
        With hidden cache of half the size of KV.
    kv_blocks
        Blocks of 16 tokens.
    ttft_factor
        Target of TTFT, in mean standalone latencies of a whole request.
    """

    llm: str
    kv_blocks: int
    ttft_factor: float

    def plan(self, batching: str, rate_per_s: float, requests: int, seed: int) -> tuple[Plan, Workload, ExecutionLog]:
        """Return the plan under one of `BATCHINGS`, with what the simulator predicts, and its record."""
        described = PlanWorkload(
            recipe=CACHED, sha256=canonical_sha256(CACHED), seed=seed, conversations=requests,
            arrivals=Arrivals(rate_per_s=rate_per_s, seed=seed),
        )  # fmt: skip
        workload, draft = load_workload(described), self._draft(described)
        target_s = self.ttft_factor * _alone_s(draft, workload)
        told = with_batching(draft, batching.partition(",")[0]).batching.replace(parameters={"ttft_slo_s": target_s})
        cost_s = BATCHINGS[batching]
        told = told if cost_s is None else told.replace(rho_s_per_block=cost_s)
        slo = draft.slo.replace(ttft=LatencyTarget(percentile=90, seconds=target_s))
        plan = draft.replace(batching=told, slo=slo)
        log = simulate(plan, workload)
        return plan.replace(predicted=measure_plan(plan, log, workload)), workload, log

    def _draft(self, described: PlanWorkload) -> Plan:
        scenario = Scenario.model_validate(
            {
                "llm": self.llm,
                "workload": {"source": CACHED.name, "arrivals": described.arrivals},
                "supply": {TIER: Supply(count=1)},
                "fleet": [FleetEntry(gpu=TIER, role="mixed")],
                "engine": {"max_batched_tokens": 512, "max_sequences": 64},
                "policy": {"batching": "vllm-chunked", "placement": "collocated", "placement_parameters": {"admission": 0}},
            }
        )
        (draft,) = drafts_of(scenario, catalog.llm(self.llm), described, "collocated")
        return draft.replace(replicas=tuple(replica.replace(kv_blocks=self.kv_blocks) for replica in draft.replicas))

    def rate_per_s(self, attained: float, requests: int, seed: int) -> float:
        """Return about the highest rate at which the simulator has ``vllm-chunked`` attain so large a share of TTFT targets."""
        plan, workload, _ = self.plan("vllm-chunked", 1.0, requests, seed)
        low, high = (factor / _alone_s(plan, workload) for factor in (0.1, 1000.0))
        if 1 - self.plan("vllm-chunked", high, requests, seed)[0].predicted.slo_violations["ttft"] >= attained:
            raise SolveError(f"{requests} requests at once still attain {attained:.0%} of their targets; give more requests")
        while high / low > 1.02:
            middle = float(np.sqrt(low * high))
            predicted = self.plan("vllm-chunked", middle, requests, seed)[0].predicted
            low, high = (middle, high) if 1 - predicted.slo_violations["ttft"] >= attained else (low, middle)
        return low


def _alone_s(plan: Plan, workload: Workload) -> float:
    """Return the mean time of a conversation with nothing else running."""
    reference = plan.slo.standalone
    return float(standalone_latency(workload, reference.coefficients, reference.max_batched_tokens).e2e_s.mean())


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many sequences decoded at once, and what it took.

    Attributes
    ----------
    most, mean
        Sequences in a decoding step; the mean over the time of those steps.
    hidden_share
        Of the cached tokens that decodes read, those rebuilt from hidden cache.
    """

    most: int
    mean: float
    hidden_share: float
    preemptions: int

    @classmethod
    def of(cls, log: ExecutionLog) -> Concurrency:
        """Count in the steps of a log."""
        steps = log.steps
        decoding = steps.decode_sequences > 0
        took_s, count = (steps.end_s - steps.start_s)[decoding], steps.decode_sequences[decoding]
        hidden, kv = float(steps.hidden_tokens.sum()), float(steps.kv_tokens.sum())
        return cls(
            int(count.max(initial=0)),
            float((took_s * count).sum() / took_s.sum()),
            hidden / max(1.0, hidden + kv),
            log.preemptions,
        )
