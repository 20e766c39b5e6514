"""Replicas that are interchangeable, and the placements that remain when only one of each kind's namings is kept."""

from __future__ import annotations

from collections.abc import Iterator

from optsched.placement.problem import PlacementProblem


def interchangeable(problem: PlacementProblem) -> list[list[int]]:
    """Return groups of two or more replicas that can be swapped without changing any placement's value."""
    groups: list[list[int]] = []
    for index in range(len(problem.replicas)):
        for group in groups:
            if all(_swap(problem, index, member) for member in group):
                group.append(index)
                break
        else:
            groups.append([index])
    return [group for group in groups if len(group) > 1]


def _swap(problem: PlacementProblem, i: int, j: int) -> bool:
    a, b = problem.replicas[i], problem.replicas[j]
    alike = (a.role, a.kv_blocks, a.coefficients, problem.chunks[i]) == (b.role, b.kv_blocks, b.coefficients, problem.chunks[j])
    if not alike or _link(problem, i, j) != _link(problem, j, i):
        return False
    others = [k for k in range(len(problem.replicas)) if k not in (i, j)]
    return all(_link(problem, i, k) == _link(problem, j, k) and _link(problem, k, i) == _link(problem, k, j) for k in others)


def _link(problem: PlacementProblem, i: int, j: int) -> tuple[float, float, float] | None:
    link = problem.link_of.get((i, j))
    return None if link is None else (link.latency_s, link.bytes_per_s, link.joules_per_byte)


def canonical_placements(problem: PlacementProblem) -> Iterator[list[tuple[int, int]]]:
    """Yield one placement of each class of placements that differ by the names of interchangeable replicas.

    In the sequence prefill 0, decode 0, prefill 1, ... the members of a group appear in their order.
    """
    before = {member: group[k - 1] for group in interchangeable(problem) for k, member in enumerate(group) if k}
    options = [problem.options(c) for c in range(problem.workload.num_conversations)]
    chosen: list[tuple[int, int]] = []

    def extend(used: frozenset[int]) -> Iterator[list[tuple[int, int]]]:
        if len(chosen) == len(options):
            yield list(chosen)
            return
        for p, d in options[len(chosen)]:
            with_prefill = used | {p}
            if before.get(p, p) in with_prefill and before.get(d, d) in with_prefill | {d}:
                chosen.append((p, d))
                yield from extend(with_prefill | {d})
                chosen.pop()

    yield from extend(frozenset())
