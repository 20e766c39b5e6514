"""Place conversations in order of arrival by the evaluator's own estimates, then improve by moving single ones."""

from __future__ import annotations

import time

import numpy as np

from optsched.placement.alone import Alone, alone
from optsched.placement.evaluate import rank
from optsched.placement.problem import PlacementPlan, PlacementProblem

LIST_EVALUATIONS = 4_000
"""Evaluations of beginnings of the workload that list scheduling may take; larger problems start from the rule alone."""
MOVES = 16
"""Replicas that local search tries for one conversation in one pass; a random choice where there are more."""
_ADDITIVE = 2  # the way of sharing out a replica's time that counts most in a crowd, see `Alone`


def greedy(problem: PlacementProblem, *, time_limit_s: float = 10.0, seed: int = 0, rounds: int = 4) -> PlacementPlan:
    """Return a placement of any number of conversations.

    The better of a rule on estimated queues and, where that is affordable, list scheduling by the evaluator; then local
    search. The same seed gives the same placement unless the time runs out.

    Parameters
    ----------
    time_limit_s
        When to stop improving.
    seed
        Of the order in which conversations are moved.
    rounds
        Most passes of local search over all conversations.
    """
    until_s = time.perf_counter() + time_limit_s
    least = alone(problem)
    plans = [by_rule(problem, least)]
    if len(problem.pairs) * problem.workload.num_conversations <= LIST_EVALUATIONS:
        plans.append(by_list(problem, plans[0], until_s))
    best = min(plans, key=lambda plan: rank(problem, plan))
    return improve(problem, best, until_s=until_s, seed=seed, rounds=rounds)


def by_rule(problem: PlacementProblem, least: Alone) -> PlacementPlan:
    """Place by arrival where the estimated TTFET (or, for energy, the added energy) is least; queues are work ahead.

    Parameters
    ----------
    least
        Times alone, see `alone`.
    """
    pairs = np.array(problem.pairs)
    kind = np.array([least.kind_of_pair[pair] for pair in problem.pairs])
    count, replicas = problem.workload.num_conversations, len(problem.replicas)
    prefill_free_s, busy_s = np.zeros(replicas), np.zeros(replicas)
    chosen = np.zeros(count, dtype=np.int64)
    power_w = problem.idle_w
    for c, arrival_s in enumerate(problem.workload.arrival_s.tolist()):
        prefill_s, ttfet_s = least.prefill_s[kind, c], least.ttfet_s[kind, c]
        work_s = least.tail_work_s[kind, _ADDITIVE, c]
        ready_s = np.maximum(arrival_s, prefill_free_s[pairs[:, 0]]) + prefill_s
        wait_s = np.maximum(0.0, busy_s[pairs[:, 1]] - ready_s)
        with np.errstate(invalid="ignore"):  # pairs that cannot hold it are infinite
            answer_s = np.nan_to_num(ready_s + wait_s + (ttfet_s - prefill_s), nan=np.inf)
            end_s = ready_s + wait_s + work_s
        score = answer_s
        if problem.objective == "energy":
            score = np.nan_to_num(least.energy_j[kind, c] + power_w * np.maximum(0.0, end_s - busy_s.max()), nan=np.inf)
        best = int(np.lexsort((answer_s, score))[0])
        chosen[c] = best
        p, d = pairs[best]
        prefill_free_s[p] = ready_s[best]
        busy_s[d] = max(busy_s[d], ready_s[best]) + work_s[best]
        if problem.replicas[p].role == "mixed" and p != d:
            busy_s[p] = max(busy_s[p], arrival_s) + prefill_s[best]
    return PlacementPlan.of(pairs[chosen, 0], pairs[chosen, 1])


def by_list(problem: PlacementProblem, start: PlacementPlan, until_s: float) -> PlacementPlan:
    """Place by arrival where the evaluator finds the conversations so far best off.

    Parameters
    ----------
    start
        Placement of those that are not reached before `until_s` (on the clock of `time.perf_counter`).
    """
    prefill, decode = start.prefill.copy(), start.decode.copy()
    for c in range(problem.workload.num_conversations):
        if time.perf_counter() >= until_s:
            break
        found = []
        for p, d in problem.options(c):
            prefill[c], decode[c] = p, d
            found.append((rank(problem, PlacementPlan(prefill, decode), c + 1), p, d))
        _, prefill[c], decode[c] = min(found)
    return PlacementPlan(prefill, decode)


def improve(problem: PlacementProblem, plan: PlacementPlan, *, until_s: float, seed: int, rounds: int) -> PlacementPlan:
    """Move single conversations, and swap two, while that helps.

    Parameters
    ----------
    until_s
        When to stop, on the clock of `time.perf_counter`.
    seed, rounds
        Of the order of the conversations, and most passes over them.
    """
    generator = np.random.default_rng(seed)
    prefill, decode = plan.prefill.copy(), plan.decode.copy()
    best = rank(problem, PlacementPlan(prefill, decode))
    for _ in range(rounds):
        better = False
        for c in generator.permutation(len(prefill)).tolist():
            other = int(generator.integers(len(prefill)))
            for changes in _moves(problem, prefill, decode, c, other, generator):
                if time.perf_counter() >= until_s:
                    return PlacementPlan(prefill, decode)
                before = [(k, int(prefill[k]), int(decode[k])) for k, _, _ in changes]
                _apply(prefill, decode, changes)
                value = rank(problem, PlacementPlan(prefill, decode))
                if value < best:
                    best, better = value, True
                else:
                    _apply(prefill, decode, before)
        if not better:
            break
    return PlacementPlan(prefill, decode)


def _apply(prefill: np.ndarray, decode: np.ndarray, changes: list[tuple[int, int, int]]) -> None:
    for conversation, p, d in changes:
        prefill[conversation], decode[conversation] = p, d


def _moves(
    problem: PlacementProblem,
    prefill: np.ndarray,
    decode: np.ndarray,
    c: int,
    other: int,
    generator: np.random.Generator,
) -> list[list[tuple[int, int, int]]]:
    now, then = (int(prefill[c]), int(decode[c])), (int(prefill[other]), int(decode[other]))
    options = [pair for pair in problem.options(c) if pair != now]
    if len(options) > MOVES:
        options = [options[k] for k in generator.choice(len(options), MOVES, replace=False)]
    found = [[(c, p, d)] for p, d in options]
    if now != then and then in problem.options(c) and now in problem.options(other):
        found.append([(c, *then), (other, *now)])
    return found
