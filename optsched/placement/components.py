"""Parts of a placement that do not depend on each other: replicas that share conversations, and what those lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product

import numpy as np

from optsched.placement.evaluate import Evaluation, transfers_j
from optsched.placement.problem import PlacementPlan, PlacementProblem, percentile_rank

Pair = tuple[int, int]
MOST_NAMES = 24
"""Namings of a part's replicas that are listed at most."""


@dataclass(frozen=True, slots=True)
class Component:
    """Replicas joined by conversations that move between them, and all that is placed on them.

    Whatever happens on other replicas, the same conversations on the same pairs, with nobody else, lead to the same figures.

    Attributes
    ----------
    pairs
        Where each of its conversations goes.
    answer_s
        The percentile of TTFET is at least this much, since no more conversations than may be are slower.
    end_s, dynamic_j, missed
        Last token, energy above idle with that of the transfers, conversations that miss a target.
    """

    pairs: dict[int, Pair]
    answer_s: float
    end_s: float
    dynamic_j: float
    missed: int

    @property
    def replicas(self) -> list[int]:
        """The replicas that its conversations use, in order."""
        return sorted({replica for pair in self.pairs.values() for replica in pair})

    def renamed(self, groups: Sequence[Sequence[int]]) -> Iterator[dict[int, Pair]]:
        """Yield its pairs under the names of interchangeable replicas, at most `MOST_NAMES` times; those as they are first."""
        own = self.replicas
        inside = [[r for r in own if r in group] for group in groups]
        choices = [
            [part, *(list(other) for other in permutations(group, len(part)) if list(other) != part)] if part else [part]
            for part, group in zip(inside, groups, strict=True)
        ]
        for choice in islice(product(*choices), MOST_NAMES):
            name = {r: r for r in own}
            for part, other in zip(inside, choice, strict=True):
                name.update(zip(part, other, strict=True))
            yield {c: (name[p], name[d]) for c, (p, d) in self.pairs.items()}


def components(problem: PlacementProblem, plan: PlacementPlan, found: Evaluation) -> list[Component]:
    """Split a placement into parts that do not depend on each other.

    Parameters
    ----------
    problem, plan, found
        A placement that breaks no rule, and its evaluation.
    """
    part = np.arange(len(problem.replicas))
    for p, d in set(zip(plan.prefill.tolist(), plan.decode.tolist(), strict=True)):
        part[part == part[p]] = part[d]
    late = len(plan.prefill) - percentile_rank(len(plan.prefill))
    last = problem.workload.first_turn[1:] - 1
    moved_j = transfers_j(problem, plan, found.schedule)
    made = []
    for label in sorted(set(part[plan.prefill].tolist())):
        members = np.flatnonzero(part[plan.prefill] == label)
        answers = np.sort(found.ttfet_s[members])
        made.append(
            Component(
                pairs={int(c): (int(plan.prefill[c]), int(plan.decode[c])) for c in members},
                answer_s=float(answers[-1 - late]) if len(members) > late else 0.0,
                end_s=float(found.schedule.end_s[last[members]].max()),
                dynamic_j=float(found.dynamic_j[part == label].sum() + moved_j[members].sum()),
                missed=0 if found.missed is None else int(found.missed[members].sum()),
            )
        )
    return made
