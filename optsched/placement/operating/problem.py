"""A placement problem whose fleet is open: each GPU (or group of GPUs) works at one of several operating points, or rests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import numpy as np

from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo
from optsched.domain.workload import Workload
from optsched.errors import ProblemError
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A fleet, and a placement on it.

    Attributes
    ----------
    counts
        Replicas at each point, by its index.
    placement
        Replicas of each conversation, by their indices in `OpenProblem.fleet`.
    """

    counts: dict[int, int]
    placement: PlacementPlan


@dataclass(frozen=True)
class OpenProblem:
    """Who prefills and who decodes, at which cap, and which conversation goes where.

    Attributes
    ----------
    workload
        The conversations: arrivals, lengths and gaps, all known.
    points
        The operating points, one replica each as it would be at it: its gpu, role, cap, pool and step law. Its id names the
        point.
    supply
        Replicas that the supply makes of each gpu, whatever their points.
    links
        Between points, by their ids: what joins a replica at the one to every other at the other. A link from a point to
        itself joins two replicas at it.
    kv_bytes_per_token, objective, block_tokens, max_batched_tokens, slo
        As in `PlacementProblem`.
    may_rest
        Whether a replica may be off, at no power and no price. Otherwise all of the supply is on.
    """

    workload: Workload
    points: tuple[PlanReplica, ...]
    supply: Mapping[str, int]
    links: tuple[PlanLink, ...]
    kv_bytes_per_token: float
    objective: Goal = "ttfet"
    block_tokens: int = 16
    max_batched_tokens: int = 2048
    slo: PlanSlo | None = None
    may_rest: bool = False

    def __post_init__(self) -> None:
        """Refuse points without a supply, and a supply without points.

        Raises
        ------
        ProblemError
            If the two do not match, or a number is out of range.
        """
        kinds = {point.gpu for point in self.points}
        for gpu in sorted(kinds | set(self.supply)):
            if gpu not in kinds or self.supply.get(gpu, 0) < 1:
                raise ProblemError(
                    f"gpu {gpu!r} has {self.supply.get(gpu, 0)} replicas and {sum(p.gpu == gpu for p in self.points)} operating "
                    "points; both must be at least 1: give the supply more, or leave the gpu out"
                )

    def fleet(self, counts: Mapping[int, int]) -> PlacementProblem:
        """Return the problem on a fleet: so many replicas at each point (by its index).

        Raises
        ------
        ProblemError
            If no placement exists on it.
        """
        chosen = [(k, n) for k in sorted(counts) for n in range(counts[k])]
        name = {(k, n): f"{self.points[k].id}-{n}" for k, n in chosen}
        joined = {(link.source, link.target): link for link in self.links}
        links = [
            joined[ends].replace(source=name[a], target=name[b])
            for a, b in product(chosen, chosen)
            if a != b and (ends := (self.points[a[0]].id, self.points[b[0]].id)) in joined
        ]
        return PlacementProblem(
            workload=self.workload, replicas=tuple(self.points[k].replace(id=name[k, n]) for k, n in chosen), links=tuple(links),
            kv_bytes_per_token=self.kv_bytes_per_token, objective=self.objective, block_tokens=self.block_tokens,
            max_batched_tokens=self.max_batched_tokens, slo=self.slo,
        )  # fmt: skip

    @cached_property
    def everything(self) -> PlacementProblem:
        """The problem in which every point has as many replicas as the supply could make at it: a superset of all fleets."""
        return self.fleet({k: self.supply[point.gpu] for k, point in enumerate(self.points)})

    @cached_property
    def point_of(self) -> tuple[int, ...]:
        """The point of each replica of `everything`."""
        return tuple(k for k, point in enumerate(self.points) for _ in range(self.supply[point.gpu]))

    def copies(self) -> list[list[int]]:
        """Return the replicas of `everything` at each point, in order."""
        return [[r for r, own in enumerate(self.point_of) if own == k] for k in range(len(self.points))]

    def fleet_plan(self, plan: PlacementPlan, on: Collection[int] = ()) -> FleetPlan:
        """Return a placement on `everything` as one on the fleet that it uses.

        Parameters
        ----------
        plan
            The placement.
        on
            Replicas of `everything` that are on though nothing is placed there. If none may rest and fewer are on than the supply
            makes, the rest work at the points that take least while idle, of role mixed where there is a choice.
        """
        chosen = sorted({*plan.prefill.tolist(), *plan.decode.tolist(), *on})
        index = {r: k for k, r in enumerate(chosen)}
        counts = dict(sorted(Counter(self.point_of[r] for r in chosen).items()))
        prefill, decode = ([index[int(r)] for r in side] for side in (plan.prefill, plan.decode))
        placement = PlacementPlan.of(prefill, decode)
        return FleetPlan(counts, placement) if self.may_rest else self._filled(counts, placement)

    def _filled(self, counts: dict[int, int], placement: PlacementPlan) -> FleetPlan:
        """Return a fleet with all of the supply on, and the placement by its indices."""
        full = Counter(counts)
        for gpu, most in self.supply.items():
            own = [k for k, point in enumerate(self.points) if point.gpu == gpu]
            spare = min(own, key=lambda k: (self._idle(k), self.points[k].role != "mixed"))
            full[spare] += most - sum(counts.get(k, 0) for k in own)
        filled = {k: full[k] for k in sorted(full) if full[k]}
        before = [(k, n) for k in sorted(counts) for n in range(counts[k])]
        after = {entry: index for index, entry in enumerate((k, n) for k in filled for n in range(filled[k]))}
        moved = np.array([after[entry] for entry in before])
        return FleetPlan(filled, PlacementPlan(moved[placement.prefill], moved[placement.decode]))

    def _idle(self, k: int) -> float:
        """Return what a replica at a point takes while it does nothing: of the price if that is the objective, else W."""
        return self.points[k].usd_per_hour if self.objective == "cost" else self.points[k].coefficients.idle_w

    def fleets(self) -> Iterator[dict[int, int]]:
        """Yield every fleet as counts by point: what the program chooses from, for checking it."""
        kinds = list(self.supply)
        own = {gpu: [k for k, point in enumerate(self.points) if point.gpu == gpu] for gpu in kinds}
        least = {gpu: 0 if self.may_rest else self.supply[gpu] for gpu in kinds}
        choices = [
            [c for size in range(least[gpu], self.supply[gpu] + 1) for c in combinations_with_replacement(own[gpu], size)]
            for gpu in kinds
        ]
        for choice in product(*choices):
            points = [k for part in choice for k in part]
            if points:
                yield {k: points.count(k) for k in sorted(set(points))}
