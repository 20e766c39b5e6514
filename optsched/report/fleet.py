"""A plan's replicas by kind: a picture of the pools, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optsched.domain.plan import Plan, PlanReplica
from optsched.report.markup import Html, element, join, table
from optsched.report.numbers import plain, quantity

MOST_DRAWN = 96
"""Replicas of a pool drawn at most."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one kind: the same llm, tier, role and size."""

    replicas: tuple[PlanReplica, ...]

    @property
    def one(self) -> PlanReplica:
        """Any of them."""
        return self.replicas[0]

    @property
    def gpus(self) -> int:
        """GPUs of the whole pool."""
        return sum(replica.tp * replica.pp for replica in self.replicas)

    @property
    def tier(self) -> str:
        """Its tier's name, as on the command line."""
        return f"{self.one.gpu}@{self.one.power_cap_w:g}W{f' {self.one.dtype}' if self.one.dtype else ''}"


def pools(plan: Plan) -> list[Pool]:
    """Group a plan's replicas, in the order in which kinds appear."""
    found: dict[tuple[object, ...], list[PlanReplica]] = {}
    for each in plan.replicas:
        kind = (
            each.llm,
            each.gpu,
            each.power_cap_w,
            each.role,
            each.tp,
            each.pp,
            each.dtype,
            each.kv_blocks,
            each.max_batched_tokens,
            each.origin,
        )
        found.setdefault(kind, []).append(each)
    return [Pool(tuple(group)) for group in found.values()]


def gpus(plan: Plan) -> int:
    """Return the number of GPUs that a plan uses."""
    return sum(replica.tp * replica.pp for replica in plan.replicas)


def power_w(plan: Plan) -> float:
    """Return the sum of the power caps of a plan's GPUs."""
    return sum(replica.power_cap_w * replica.tp * replica.pp for replica in plan.replicas)


def fleet_body(plan: Plan) -> Html:
    """Return the picture and the table."""
    found = pools(plan)
    picture = element("div", join(_drawn(pool) for pool in found), class_="fleet")
    return join([picture, _table(plan, found)])


def _drawn(pool: Pool) -> Html:
    cards = [
        element(
            "span", join(element("i") for _ in range(replica.tp * replica.pp)), class_=f"replica {replica.role}", title=replica.id
        )
        for replica in pool.replicas[:MOST_DRAWN]
    ]
    more = len(pool.replicas) - len(cards)
    rest = [element("span", f"and {more:,} more")] if more else []
    name = element("div", f"{len(pool.replicas)} {pool.one.role} on {pool.tier}", class_="name")
    return element("div", join([name, element("div", join([*cards, *rest]), class_="cards")]), class_="pool")


def _table(plan: Plan, found: Sequence[Pool]) -> Html:
    several = len(plan.llms) > 1
    columns = ["tier", "role", *(["llm"] if several else []), "replicas", "TP x PP", "GPUs", "power cap", "KV tokens each"]
    columns += ["tokens per step", "price", "coefficients"]
    rows = []
    for pool in found:
        one = pool.one
        budget = one.max_batched_tokens or plan.engine.max_batched_tokens
        rows.append([
            pool.tier, one.role, *([one.llm] if several else []), str(len(pool.replicas)), f"{one.tp} x {one.pp}", str(pool.gpus),
            quantity(one.power_cap_w * pool.gpus, "W"), f"{one.kv_blocks * plan.engine.block_tokens:,}", f"{budget:,}",
            f"{plain(sum(replica.usd_per_hour for replica in pool.replicas))} USD/h", one.origin,
        ])  # fmt: skip
    return table(columns, rows, left=3 if several else 2)
