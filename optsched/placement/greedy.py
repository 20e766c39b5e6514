"""Place any number of conversations: by a rule on queues, by list scheduling, then large-neighbourhood search."""

from __future__ import annotations

import time
from dataclasses import replace

from optsched.placement.alone import alone
from optsched.placement.evaluate import rank
from optsched.placement.neighbourhood import Neighbourhood
from optsched.placement.problem import PlacementPlan, PlacementProblem
from optsched.placement.rule import Crowd, Rule, by_rule

WORK_PER_TURN = 5_000
"""How often each turn is timed again, by default; a second is about a million turns."""
MOST_WORK = 25_000_000
"""Turns that are timed again in all at most, by default."""
FEWEST_TRIED = 3
"""Pairs that list scheduling tries at least for each conversation."""
FEWEST_SHARES = 8
"""Where not even every eighth conversation could be tried on another pair once, the rules are all there is."""
LIST_WORK = 4_000_000
"""Share of that for list scheduling: it tries fewer pairs per conversation where it would take longer."""
MOST_PAIRS = 256
"""Pairs up to which all are searched; beyond, mixed replicas keep to themselves: each move across times many of them again."""


def default_work(problem: PlacementProblem) -> int:
    """Return how many turns `greedy` times again by default: about what 10 seconds allow for 255 conversations of five turns."""
    return min(MOST_WORK, WORK_PER_TURN * problem.workload.num_turns)


def greedy(
    problem: PlacementProblem,
    *,
    time_limit_s: float = 60.0,
    seed: int = 0,
    work: int | None = None,
    start: PlacementPlan | None = None,
    moved_cost: float = 0.0,
) -> PlacementPlan:
    """Return a placement of any number of conversations.

    The best of two rules on estimated queues and crowds, of list scheduling by the evaluator and of the placement to start
    from; then large-neighbourhood search. The same arguments give the same placement unless the time runs out.

    Parameters
    ----------
    time_limit_s
        When to stop improving, whatever is left of the work.
    seed
        Of all random choices.
    work
        Turns to time again at most, the measure of effort; None: `default_work`. With 0 only the rule and `start` are compared;
        list scheduling takes part where it leaves half of the effort to the search.
    start
        A placement that is in force. It is where the search begins if it is the best.
    moved_cost
        What each conversation that leaves its place in `start` costs, in the objective's unit.
    """
    until_s = time.perf_counter() + time_limit_s
    least = alone(problem)
    effort = default_work(problem) if work is None else work
    rules = [by_rule(problem, least, kind) for kind in (Rule, Crowd)]
    if start is None and len(problem.pairs) > MOST_PAIRS and all(replica.role == "mixed" for replica in problem.replicas):
        left_s = max(0.0, until_s - time.perf_counter())
        apart = greedy(replace(problem, links=()), time_limit_s=left_s, seed=seed, work=work)
        return min((apart, *rules), key=lambda plan: rank(problem, plan))
    if start is None and (not effort or _is_hopeless(problem, effort)):
        return min(rules, key=lambda plan: rank(problem, plan))
    plans = rules + ([] if start is None else [start])
    search = Neighbourhood(problem, seed=seed, home=start, moved_cost=moved_cost)
    if effort >= 2 * FEWEST_TRIED * _once(problem, feeding=True):
        better = Rule if rank(problem, rules[0]) <= rank(problem, rules[1]) else Crowd
        listed = search.build(better(problem, least), _pairs_tried(problem, effort), until_s=until_s, work=0.8 * effort)
        plans += [] if listed is None else [listed]
    scores = [search.start_from(plan) for plan in plans]
    search.start_from(plans[scores.index(min(scores))])
    found = search.improve(effort - search.work, until_s=until_s)
    if moved_cost:
        return found
    # the pieces that the search adds up may round differently
    return min((*plans, found), key=lambda plan: rank(problem, plan))


def _once(problem: PlacementProblem, *, feeding: bool = False) -> int:
    """Return how many turns list scheduling times again for each pair that it tries per conversation.

    On average half of the conversations of a replica so far; with `feeding`, where mixed replicas feed each other, half of all.
    """
    conversations, replicas = problem.workload.num_conversations, len(problem.replicas)
    mixed = [replica.role == "mixed" for replica in problem.replicas]
    joined = feeding and any(p != d and mixed[p] and mixed[d] for p, d in problem.pairs)
    return problem.workload.num_turns * max(1, conversations // (2 if joined else 2 * replicas))


def _is_hopeless(problem: PlacementProblem, effort: int) -> bool:
    """Tell whether replicas feed each other, and so many turns are timed again for each try that a search would move nobody."""
    once = problem.workload.num_turns * problem.workload.num_conversations // 2
    return FEWEST_SHARES * effort < once and any(p != d for p, d in problem.pairs)


def _pairs_tried(problem: PlacementProblem, effort: int) -> int:
    """Return how many pairs list scheduling may try for each conversation."""
    return min(len(problem.pairs), max(FEWEST_TRIED, min(LIST_WORK, effort // 4) // _once(problem)))
