"""Servers that are alike, as the pools of a deployment."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.domain.plan import Plan
from optsched.errors import SpecError
from optsched.export.notes import tier_name
from optsched.export.serving import Serving


@dataclass(frozen=True, slots=True)
class ServerPool:
    """Servers of one role, tier and configuration.

    Attributes
    ----------
    name
        Of the pool, unlike every other's: its role, and its tier.
    servings
        At least one; all alike but for their ids.
    """

    name: str
    servings: tuple[Serving, ...]

    @property
    def one(self) -> Serving:
        """Any of them."""
        return self.servings[0]

    @property
    def node_selector(self) -> dict[str, str]:
        """The label of the nodes that it needs."""
        return {"optsched/tier": tier_name(self.one.replica.gpu, self.one.replica.power_cap_w)}

    @property
    def prefill_tokens_per_s(self) -> int:
        """Prompt tokens per second of one server, by its step law at its token budget."""
        budget = int(dict(self.one.options)["--max-num-batched-tokens"] or 1)
        return int(budget / self.one.replica.coefficients.prefill_s(budget, 0, budget))


def server_pools(plan: Plan, servings: list[Serving]) -> list[ServerPool]:
    """Group servers into pools, in the order of the plan.

    Raises
    ------
    SpecError
        If there are several llms, or mixed replicas beside prefillers or decoders: one deployment has neither.
    """
    if len(plan.llms) > 1:
        raise SpecError(
            f"the plan has {len(plan.llms)} llms, a deployment one; export each llm's plan, or use --to vllm", field="--to"
        )
    if len(roles := {each.replica.role for each in servings}) > 1 and "mixed" in roles:
        raise SpecError(
            "the plan has mixed replicas beside prefillers or decoders, a deployment either; use --to vllm or another policy",
            field="--to",
        )
    found: dict[tuple[object, ...], list[Serving]] = {}
    for each in servings:
        replica = each.replica
        kind = (replica.role, replica.gpu, replica.power_cap_w, replica.tp, replica.pp, each.options)
        found.setdefault(kind, []).append(each)
    pools: list[ServerPool] = []
    for group in found.values():
        replica = group[0].replica
        name = f"{replica.role}-{tier_name(replica.gpu, replica.power_cap_w)}-tp{replica.tp}"
        again = sum(pool.name == name or pool.name.startswith(f"{name}-v") for pool in pools)
        pools.append(ServerPool(f"{name}-v{again + 1}" if again else name, tuple(group)))
    return pools


def deployment_name(plan: Plan) -> str:
    """Return a name for the whole, as Kubernetes takes it."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in plan.llms[0].name.lower())
    return f"optsched-{letters}"[:30].strip("-")
