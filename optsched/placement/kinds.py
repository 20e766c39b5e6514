"""Kinds of replicas and of pairs: those that nothing tells apart but their names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from optsched.placement.alone import Alone
from optsched.placement.problem import PlacementProblem

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of pairs and of replicas, and what conversations need of them.

    Attributes
    ----------
    row
        Row of each kind of pair in `Alone`.
    source, target
        Kind of replica that prefills and that decodes.
    count
        Replicas of each kind.
    only_prefill
        Kinds that decode nothing.
    """

    row: Int64[Array, " Q"]
    source: Int64[Array, " Q"]
    target: Int64[Array, " Q"]
    count: Int64[Array, " G"]
    only_prefill: Bool[Array, " G"]


def kinds_of(problem: PlacementProblem, least: Alone) -> Kinds:
    """Group replicas by role, step law, chunk and pool, and pairs by those of their ends and their link."""
    groups: dict[tuple[object, ...], int] = {}
    kind = [
        groups.setdefault((r.role, r.coefficients, problem.chunks[i], r.kv_blocks), len(groups))
        for i, r in enumerate(problem.replicas)
    ]
    pairs = sorted({(least.kind_of_pair[p, d], kind[p], kind[d]) for p, d in problem.pairs})
    row, source, target = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    count = np.bincount(kind, minlength=len(groups))
    only_prefill = np.array([key[0] == "prefill" for key in groups])
    return Kinds(row, source, target, count, only_prefill)
