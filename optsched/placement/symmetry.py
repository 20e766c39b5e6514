"""Replicas that are interchangeable: placements that differ by their names only are worth the same."""

from __future__ import annotations

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
