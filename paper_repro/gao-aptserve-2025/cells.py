"""A replica as the paper has it, its workloads, and one run of them: what every experiment is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optsched import catalog
from optsched.cost.rho import rho_s_per_block
from optsched.cost.tables import step_law
from optsched.domain.attainment import Attained, attained
from optsched.domain.hardware import Tier
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanBatching, PlanPlacement
from optsched.domain.scenario import EngineSpec, FleetEntry, PolicySpec, Scenario, Supply, WorkloadSpec
from optsched.domain.workload import Arrivals, Workload
from optsched.planner.effective_throughput import Shares
from optsched.planner.plan import plan_scenario
from optsched.simulator.simulate import simulate
from optsched.traces.arrivals import arrival_times
from optsched.traces.synthesis import synthesise

from .settings import Settings

NEVER_S = 1e9
"""A target that nobody misses: without demotion."""


@dataclass(frozen=True)
class Cell:
    """One llm on its GPUs, and the targets in force.

    Attributes
    ----------
    plan
        One mixed replica; policy ``vllm``.
    rho_s_per_block
        Seconds that a block of hidden cache adds to a step, by reading.
    """

    settings: Settings
    plan: Plan
    rho_s_per_block: dict[str, float]
    ttft_slo_s: float
    tbt_slo_s: float

    @classmethod
    def of(cls, settings: Settings, llm: str, step_overhead_s: float) -> Cell:
        """Build the replica of an llm with so much time between its steps."""
        shape, engine, tp = catalog.llm(llm), settings.engine, settings.tensor_parallel.get(llm, 1)
        card = catalog.gpu(engine.gpu)
        scenario = Scenario(
            llm=llm,
            workload=WorkloadSpec(source="sharegpt", conversations=1, arrivals=Arrivals(rate_per_s=1.0)),
            supply={engine.gpu: Supply(count=tp)},
            fleet=(FleetEntry(gpu=engine.gpu, role="mixed", tp=tp),),
            engine=EngineSpec(
                block_tokens=engine.block_tokens, max_batched_tokens=engine.max_batched_tokens,
                max_sequences=engine.max_sequences, watermark=engine.watermark, chunked_prefill=True,
            ),
            policy=PolicySpec(batching="vllm", placement="collocated"),
        )  # fmt: skip
        plan = plan_scenario(scenario).plan
        law = step_law(shape, Tier(card, card.datasheet.power_w, engine.overheads), tp=tp).replace(overhead_s=step_overhead_s)
        heads = shape.num_heads + 2 * shape.num_kv_heads
        qkv_flops = 2 * engine.block_tokens * shape.hidden_size * heads * shape.head_dim * shape.num_layers / tp
        rho = {"physical": rho_s_per_block(law, engine.block_tokens), "code": qkv_flops / engine.qkv_flops_per_s / 5}
        replica = plan.replicas[0].replace(coefficients=law)
        plan = plan.replace(replicas=(replica,), placement=PlanPlacement(policy="collocated", parameters={"admission": 0}))
        return cls(settings, plan, rho, settings.ttft_slo_s, settings.tbt_slo_s)

    def under(self, variant: str) -> Plan:
        """Return the plan under one of the configured variants."""
        chosen = self.settings.variants[variant]
        targets = (self.ttft_slo_s, self.tbt_slo_s) if chosen.demotion else (NEVER_S, NEVER_S)
        parameters = {"ttft_slo_s": targets[0], "tbt_slo_s": targets[1], **chosen.parameters}
        batching = PlanBatching(policy=chosen.policy, rho_s_per_block=self.rho_s_per_block[chosen.rho], parameters=parameters)
        return self.plan.replace(batching=batching)

    def search(self, variant: str, recipe: str, cv: float = 1.0) -> Callable[[float, int], Shares]:
        """Return the shares that attain as a function of rate and seed, for `effective_throughput`."""
        plan = self.under(variant)

        def shares(rate_per_s: float, seed: int) -> Shares:
            workload = arriving(self.settings, recipe, rate_per_s, seed, cv)
            return self.judge(simulate(plan, workload, record_steps=False, record_tokens=False), workload).shares  # type: ignore[return-value]

        return shares

    def run(self, variant: str, workload: Workload) -> tuple[ExecutionLog, Attained]:
        """Execute a workload under a variant, and judge it."""
        log = simulate(self.under(variant), workload, record_tokens=False)
        return log, self.judge(log, workload)

    def judge(self, log: ExecutionLog, workload: Workload) -> Attained:
        """Tell which requests met the targets."""
        return attained(log, workload, self.ttft_slo_s, self.tbt_slo_s)


@lru_cache(maxsize=64)
def _lengths(recipe: str, requests: int, seed: int, shortest: int, longest: int) -> Workload:
    """Draw requests from a recipe, keeping those within the sampler's limits."""
    drawn = synthesise(catalog.recipe(recipe), 3 * requests, seed)
    prompt, output = drawn.new_tokens, drawn.output_tokens
    keep = np.flatnonzero((prompt >= shortest) & (output >= shortest) & (prompt + output <= longest))[:requests]
    if len(keep) < requests:
        raise ValueError(f"{recipe}: fewer than a third of the requests lie between {shortest} and {longest} tokens")
    return Workload(
        conversation_id=np.arange(requests), arrival_s=np.zeros(requests), first_turn=np.arange(requests + 1),
        new_tokens=prompt[keep], output_tokens=output[keep], gap_s=np.zeros(requests), arrivals_known=False,
    )  # fmt: skip


def arriving(settings: Settings, recipe: str, rate_per_s: float, seed: int, cv: float = 1.0) -> Workload:
    """Return requests of a recipe, arriving at a rate as a Poisson (cv 1) or Gamma process."""
    lengths = _lengths(recipe, settings.requests, seed, settings.shortest_tokens, settings.longest_tokens)
    arrivals = Arrivals(process="poisson" if cv == 1.0 else "gamma", rate_per_s=rate_per_s, cv=cv, seed=seed)
    return lengths.with_arrivals(arrival_times(arrivals, settings.requests))


@lru_cache(maxsize=16)
def cell(settings_json: str, llm: str, step_overhead_s: float) -> Cell:
    """Return the replica of an llm; built once."""
    return Cell.of(Settings.model_validate_json(settings_json), llm, step_overhead_s)


def make_cell(settings: Settings, llm: str) -> Cell:
    """Return the replica of an llm with the frozen time between steps.

    Raises
    ------
    ValueError
        If the constant was not fitted yet.
    """
    if settings.frozen is None:
        raise ValueError("config.toml has no [frozen] step_overhead_s; fit it first")
    return cell(settings.model_dump_json(by_alias=True), llm, settings.frozen.step_overhead_s)


def limited_share(log: ExecutionLog) -> float:
    """Return the share of the time in steps that a prefill-first policy spends decoding while requests wait.

    Such a policy decodes only if nothing can be admitted: for want of memory, since 256 sequences are never reached here.
    """
    steps = log.steps
    unfinished = np.searchsorted(np.sort(log.arrival_s), steps.start_s, side="right")
    unfinished -= np.searchsorted(np.sort(log.end_s), steps.start_s, side="right")
    duration = steps.end_s - steps.start_s
    limited = (steps.prefill_tokens == 0) & (unfinished > steps.sequences)
    return float(duration[limited].sum() / duration.sum())
