"""Plans as exports take them: on catalog's cards, with llms whose weights are published."""

from __future__ import annotations

from factories import make_plan

from optsched import catalog
from optsched.cost.memory import kv_token_budget
from optsched.domain.plan import Assignment, Plan, PlanLlm
from optsched.domain.scenario import EngineSpec, Role


def served(
    roles: list[Role],
    *,
    llm: str = "qwen3-8b",
    tier: str = "h100-sxm@500W",
    tp: int = 1,
    policy: str = "conserve",
    batching: str = "vllm-chunked",
    engine: EngineSpec | None = None,
) -> Plan:
    """Return a plan whose replicas hold as much cache as fits."""
    shape, found = catalog.llm(llm), catalog.tier(tier)
    engine = engine or EngineSpec(max_batched_tokens=8192, max_sequences=256)
    draft = make_plan(roles, policy=policy, batching=batching, engine=engine)
    blocks = kv_token_budget(shape, found, tp=tp, block_tokens=engine.block_tokens) // engine.block_tokens
    replicas = tuple(
        each.replace(llm=llm, gpu=found.gpu.name, power_cap_w=found.power_cap_w, tp=tp, kv_blocks=blocks)
        for each in draft.replicas
    )
    placement = draft.placement.replace(assignments=(Assignment(conversation=0, prefill="r0", decode=replicas[-1].id),))
    return draft.replace(llms=(PlanLlm(name=llm, shape=shape),), replicas=replicas, placement=placement)
