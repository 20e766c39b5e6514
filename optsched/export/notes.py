"""What of a plan an engine cannot be told, one line each."""

from __future__ import annotations

from collections.abc import Iterator

from optsched.domain.plan import Plan
from optsched.domain.scenario import PlacementPolicyName
from optsched.export.documented import Target
from optsched.export.serving import Serving, longest_context

PINNED: tuple[PlacementPolicyName, ...] = ("conserve", "optimised")
"""Placements that keep a conversation on its decoder."""
SESSION_HEADER = "x-session-id"
_HIDDEN = ("apt-serve", "apt-serve-decay", "apt-serve-exact")
_ENGINE_OWN = ("vllm", "vllm-chunked", "sarathi", "fastgen")
_BY_LOAD = "the router decides by load and cached prefixes"
_PLACEMENT: dict[PlacementPolicyName, str] = {
    "adaptive": f"decides by backlog and free cache, and has replicas change roles; {_BY_LOAD}",
    "optimised": f"assigns each conversation with foresight; {_BY_LOAD}",
    "conserve": "sends first turns through a prefiller and keeps the others on one decoder; routers go by cached prefixes",
    "per-turn": f"places each turn with a predictor of its length; {_BY_LOAD}",
    "per-turn-emulated": f"takes a tenth of its decisions wrongly on purpose; {_BY_LOAD}",
    "full-disaggregation": "sends every turn through a prefiller and back; the router sends no cache of earlier turns back",
    "collocated": f"counts free cache blocks; {_BY_LOAD}",
}


def notes(plan: Plan, target: Target, servings: list[Serving]) -> list[str]:
    """Return what to know before running an export.

    Parameters
    ----------
    plan, target
        What is exported, and to which engine.
    servings
        Its replicas.
    """
    found = [*_policies(plan, target), *_limits(plan, servings), *_powers(servings, target), *_always(plan)]
    return list(dict.fromkeys(found))  # replicas that are alike say the same


def _policies(plan: Plan, target: Target) -> Iterator[str]:
    policy, placement = plan.batching.policy, plan.placement
    if policy in _HIDDEN:
        yield f"batching '{policy}' keeps hidden caches; vLLM has none, so that fewer requests fit at once than planned"
    elif policy not in _ENGINE_OWN:
        yield f"batching '{policy}' is not vLLM's, whose scheduler takes requests in the order of their arrival"
    yield f"placement '{placement.policy}' {_PLACEMENT[placement.policy]}"
    if target == "llm-d" and placement.policy in PINNED and any(each.role == "decode" for each in plan.replicas):
        yield f"llm-d pins a conversation to its decoder by the header {SESSION_HEADER}, which clients have to send"
    if target == "vllm":
        yield "the proxy of vLLM's documentation is an example that only takes turns; give conversations a router of your own"
    if placement.assignments:
        yield f"the {len(placement.assignments):,} assignments of conversations to replicas are a prediction, not an instruction"
    if plan.engine.watermark > 0:
        yield f"vLLM keeps no watermark of free blocks ({100 * plan.engine.watermark:g} % in the plan)"


def _limits(plan: Plan, servings: list[Serving]) -> Iterator[str]:
    shapes, block = {llm.name: llm.shape for llm in plan.llms}, plan.engine.block_tokens
    for each in servings:
        replica, llm = each.replica, shapes[each.replica.llm].with_weights(each.replica.dtype)
        kind = f"{replica.role} on {each.gpus} x {replica.gpu}"
        budget, most = replica.max_batched_tokens or plan.engine.max_batched_tokens, plan.engine.max_sequences
        if most > budget:
            yield f"{kind}: vLLM takes no more sequences than tokens in a step, so --max-num-seqs is {budget}, not {most}"
        if (longest := longest_context(plan, replica, llm)) < llm.max_positions:
            yield f"{kind}: contexts end at {longest:,} tokens, where {llm.name} could take {llm.max_positions:,}"
        if llm.dtype in ("int4", "int8"):
            yield f"{kind}: {llm.name} was planned with {llm.dtype} weights; serve a checkpoint that is quantised so"
        yield (
            f"{kind}: the plan counts on {replica.kv_blocks:,} cache blocks of {block} tokens; compare with what vLLM logs, and "
            f"mend a difference with --num-gpu-blocks-override {replica.kv_blocks}"
        )


def _powers(servings: list[Serving], target: Target) -> Iterator[str]:
    tiers = sorted({(each.replica.gpu, each.replica.power_cap_w, each.capped) for each in servings})
    for gpu, cap, capped in tiers:
        if capped:
            where = "as each replica's script says" if target == "vllm" else f"on nodes labelled {tier_label(gpu, cap)}"
            yield f"{gpu} at {cap:g} W: run nvidia-smi --power-limit={cap:g} as root {where}; servers may not"
    if target != "vllm":
        labels = ", ".join(tier_label(gpu, cap) for gpu, cap, _ in tiers)
        yield f"pods ask for nodes by label; set it with: kubectl label node NODE LABEL, where LABEL is one of {labels}"


def _always(plan: Plan) -> Iterator[str]:
    yield from (f"weights {llm.weights} are a folder; it has to be there for every server" for llm in plan.llms if llm.weights)
    yield "a conversation's cache stays between its turns as a cached prefix, which vLLM may evict and then computes again"
    if any(replica.role != "mixed" for replica in plan.replicas):
        yield "NIXL moves caches over UCX; name its devices with UCX_NET_DEVICES where there are several networks"


def tier_label(gpu: str, power_cap_w: float) -> str:
    """Return the node label of a tier."""
    return f"optsched/tier={tier_name(gpu, power_cap_w)}"


def tier_name(gpu: str, power_cap_w: float) -> str:
    """Return a tier's name as Kubernetes takes it in labels and names."""
    return f"{gpu}-{power_cap_w:g}w".replace(".", "-")
