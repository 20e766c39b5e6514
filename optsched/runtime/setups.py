"""From a plan to what each worker builds, or the reason why this runtime cannot execute it."""

from __future__ import annotations

import os

from optsched.batching.policies import HYBRID, policy_parameters
from optsched.batching.policies.dispatch import own_parameters
from optsched.batching.step_time import law_rows
from optsched.domain.plan import Plan, PlanLlm, PlanReplica
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, PlanError, SpecError
from optsched.placement.room import refuse_what_cannot_fit
from optsched.runtime.messages import Limits, Setup
from optsched.runtime.model.shard import shard_llm
from optsched.runtime.model.weights import refuse_what_cannot_run


def worker_setups(plan: Plan, workload: Workload, seed: int, device: str, patience_s: float = 60.0) -> list[Setup]:
    """Return what each worker of a plan builds.

    Raises
    ------
    PlanError
        If the plan contradicts itself.
    SpecError
        If the runtime cannot do what the plan says.
    InfeasibleError
        If a conversation fits no replica.
    """
    if broken := plan.violations():
        raise PlanError(broken)
    if plan.engine.prefix_caching:
        raise SpecError("true: the workers do not share prompts' cache; leave it out", field="engine.prefix_caching")
    llms = {llm.name: llm for llm in plan.llms}
    for replica in plan.replicas:
        _refuse_what_cannot_run(replica, llms[replica.llm], workload)
        _refuse_hidden_cache_that_ranks_cannot_share(replica, llms[replica.llm], plan.batching.policy)
    refuse_what_cannot_fit(plan, workload)
    parameters = policy_parameters(plan.batching.policy, plan.batching.parameters)
    return [
        Setup(
            index=index,
            num_workers=len(plan.replicas),
            llm=llms[replica.llm].shape,
            weights=llms[replica.llm].weights,
            seed=seed,
            kv_blocks=replica.kv_blocks,
            limits=Limits(
                policy=plan.batching.policy,
                block_tokens=plan.engine.block_tokens,
                watermark_blocks=int(plan.engine.watermark * replica.kv_blocks),
                max_batched_tokens=replica.max_batched_tokens or plan.engine.max_batched_tokens,
                max_sequences=plan.engine.max_sequences,
                rho_s_per_block=plan.batching.rho_s_per_block,
                ttft_slo_s=parameters["ttft_slo_s"],
                tbt_slo_s=parameters["tbt_slo_s"],
                parameters=own_parameters(plan.batching.policy, parameters),
                law=law,
            ),
            device=device,
            patience_s=patience_s,
            tp=replica.tp,
        )
        for index, (replica, law) in enumerate(zip(plan.replicas, law_rows(plan.replicas), strict=True))
    ]


def refuse_what_memory_cannot_hold(plan: Plan) -> None:
    """Refuse pools and weights that all workers together could not allocate on this machine.

    Raises
    ------
    InfeasibleError
        If they need more than there is.
    """
    shapes = {llm.name: llm.shape for llm in plan.llms}
    needed = sum(
        replica.kv_blocks * plan.engine.block_tokens * shapes[replica.llm].kv_bytes_per_token + shapes[replica.llm].weights_bytes
        for replica in plan.replicas
    )
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > have:
        raise InfeasibleError(
            f"The plan's caches and weights take {needed / 1e9:.4g} GB, this machine has {have / 1e9:.4g} GB. "
            "Plan for local-cpu, or with fewer kv_blocks."
        )


def _refuse_hidden_cache_that_ranks_cannot_share(replica: PlanReplica, llm: PlanLlm, policy: str) -> None:
    if policy in HYBRID and llm.shape.hidden_ratio < 1 and llm.shape.hidden_size % replica.tp:
        raise SpecError(
            f"replica {replica.id!r} has tp {replica.tp}, and {policy!r} keeps hidden cache of {llm.name}; {replica.tp} ranks "
            f"cannot share its hidden size of {llm.shape.hidden_size} evenly. Plan with another tp, or another batching policy.",
            field="batching.policy",
        )


def _refuse_what_cannot_run(replica: PlanReplica, llm: PlanLlm, workload: Workload) -> None:
    refuse_what_cannot_run(llm.shape)
    if replica.dtype is not None:
        raise SpecError(
            f"replica {replica.id!r} has weights in {replica.dtype}, {llm.name} in {llm.shape.dtype}; the workers of an llm load "
            "the same. Simulate the plan, or plan replicas without a dtype of their own."
        )
    if replica.pp > 1:
        raise SpecError(
            f"replica {replica.id!r} has pp {replica.pp}; the runtime runs no pipelines. "
            "Simulate the plan, or plan replicas with pp 1."
        )
    shard_llm(llm.shape, replica.tp)
    longest = int(workload.peak_tokens.max(initial=0))
    if longest > llm.shape.max_positions:
        raise SpecError(
            f"a conversation reaches {longest:,} tokens; {llm.name} has positions for {llm.shape.max_positions:,}. Shorten the "
            "workload (turns), or use another llm."
        )
