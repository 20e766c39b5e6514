"""Check a placement and what the evaluator says it leads to, in plain Python that shares no code with any formulation."""

from __future__ import annotations

from itertools import pairwise

from optsched.placement.evaluate import Evaluation, evaluate, static_violations
from optsched.placement.problem import PlacementPlan, PlacementProblem

TOLERANCE_S = 1e-9


def violations(plan: PlacementPlan, problem: PlacementProblem) -> list[str]:
    """List every rule that a placement breaks, in plain sentences.

    Parameters
    ----------
    plan, problem
        The placement and the problem it answers.
    """
    count = problem.workload.num_conversations
    if len(plan.prefill) != count or len(plan.decode) != count:
        return [f"the plan places {len(plan.prefill)} and {len(plan.decode)} conversations, the problem has {count}"]
    joined = {(link.source, link.target) for link in problem.links}
    broken: list[str] = []
    for conversation in range(count):
        broken.extend(_placement_violations(problem, joined, plan, conversation))
    # what is wrong without a clock cannot be put on one
    if broken or static_violations(problem, plan):
        return broken or static_violations(problem, plan)
    return schedule_violations(problem, plan, evaluate(problem, plan))


def _placement_violations(
    problem: PlacementProblem, joined: set[tuple[str, str]], plan: PlacementPlan, conversation: int
) -> list[str]:
    name, replicas = f"conversation {conversation}", problem.replicas
    p, d = int(plan.prefill[conversation]), int(plan.decode[conversation])
    for index in (p, d):
        if not 0 <= index < len(replicas):
            return [f"{name} is placed on replica {index}; there are replicas 0 to {len(replicas) - 1}"]
    broken = []
    source, target = replicas[p], replicas[d]
    if source.role == "decode":
        broken.append(f"{name} is prefilled on {source.id!r}, whose role is decode")
    if target.role == "prefill":
        broken.append(f"{name} is decoded on {target.id!r}, whose role is prefill")
    if p != d and (source.id, target.id) not in joined:
        broken.append(f"{name} moves from {source.id!r} to {target.id!r}, but no link joins them")
    turns = problem.workload.turns(conversation)
    prompt = int(problem.workload.new_tokens[turns[0]])
    peak = sum(int(problem.workload.new_tokens[t]) + int(problem.workload.output_tokens[t]) for t in turns)
    for replica, tokens, held in ((source, prompt, p != d), (target, peak, True)):
        needed = (tokens + problem.block_tokens - 1) // problem.block_tokens
        if held and needed > replica.kv_blocks:
            broken.append(f"{name} needs {needed:,} blocks on {replica.id!r}, which has {replica.kv_blocks:,}")
    return broken


def schedule_violations(problem: PlacementProblem, plan: PlacementPlan, found: Evaluation) -> list[str]:
    """List what an evaluation breaks: order of times, one transfer, pools, and first come, first served.

    Parameters
    ----------
    problem, plan, found
        The problem, a placement that breaks no rule by itself, and its evaluation.
    """
    broken = []
    for conversation in range(problem.workload.num_conversations):
        broken.extend(_time_violations(problem, plan, found, conversation))
    for replica in range(len(problem.replicas)):
        broken.extend(_pool_violations(problem, plan, found, replica))
        broken.extend(_order_violations(problem, plan, found, replica))
    return broken


def _time_violations(problem: PlacementProblem, plan: PlacementPlan, found: Evaluation, c: int) -> list[str]:
    schedule, workload, name = found.schedule, problem.workload, f"conversation {c}"
    law = problem.replicas[int(plan.prefill[c])].coefficients
    chunk = problem.chunks[int(plan.prefill[c])]
    turns = workload.turns(c)
    start, end = float(schedule.prefill_start_s[c]), float(schedule.prefill_end_s[c])
    broken = []
    if not start >= float(workload.arrival_s[c]) - TOLERANCE_S:
        broken.append(f"{name} starts its prefill before it arrives")
    if not end >= start + law.prefill_s(int(workload.new_tokens[turns[0]]), 0, chunk) * (1 - 1e-9):
        broken.append(f"{name} is prefilled in less time than its prefill takes alone")
    ready = end
    p, d = int(plan.prefill[c]), int(plan.decode[c])
    if p != d and (len(turns) > 1 or workload.output_tokens[turns[0]] > 1):
        link = problem.link_of[p, d]
        volume = problem.kv_bytes_per_token * float(workload.new_tokens[turns[0]])
        ready = float(schedule.moved_s[c])
        if not ready >= end + (link.latency_s + volume / link.bytes_per_s) * (1 - 1e-9) - TOLERANCE_S:
            broken.append(f"{name} is on its decoder before its cache can have moved there")
    decoder = problem.replicas[d].coefficients
    context = 0
    for turn in turns:
        first, last = float(schedule.first_token_s[turn]), float(schedule.end_s[turn])
        context += int(workload.new_tokens[turn])
        least = decoder.decode_s(context, int(workload.output_tokens[turn]) - 1)
        since = max(first, ready) if workload.output_tokens[turn] > 1 else first
        if not last >= since + least * (1 - 1e-9) - TOLERANCE_S:
            broken.append(f"turn {turn} of {name} is decoded in less time than it takes alone")
        context += int(workload.output_tokens[turn])
    for before, after in pairwise(turns):
        due = float(schedule.end_s[before]) + float(workload.gap_s[after])
        if not float(schedule.first_token_s[after]) >= due - TOLERANCE_S:
            broken.append(f"turn {after} of {name} answers before it arrives")
    return broken


def _pool_violations(problem: PlacementProblem, plan: PlacementPlan, found: Evaluation, replica: int) -> list[str]:
    changes: list[tuple[float, int]] = []
    for c in range(problem.workload.num_conversations):
        admitted = float(found.schedule.admitted_s[c])
        if int(plan.decode[c]) == replica and admitted == admitted:  # noqa: PLR0124
            peak = sum(int(problem.workload.new_tokens[t] + problem.workload.output_tokens[t]) for t in problem.workload.turns(c))
            blocks = (peak + problem.block_tokens - 1) // problem.block_tokens
            changes += [(admitted, blocks), (float(found.schedule.released_s[c]), -blocks)]
    held = 0
    for _, blocks in sorted(changes):  # releases first at equal times
        held += blocks
        if held > problem.replicas[replica].kv_blocks:
            name = problem.replicas[replica].id
            return [f"replica {name!r} holds {held:,} blocks at once; its pool has {problem.replicas[replica].kv_blocks:,}"]
    return []


def _order_violations(problem: PlacementProblem, plan: PlacementPlan, found: Evaluation, replica: int) -> list[str]:
    if problem.replicas[replica].role != "prefill":
        return []
    spans = [
        (float(found.schedule.prefill_start_s[c]), float(found.schedule.prefill_end_s[c]))
        for c in range(problem.workload.num_conversations)
        if int(plan.prefill[c]) == replica
    ]
    name = problem.replicas[replica].id
    if any(later[0] < earlier[1] - TOLERANCE_S for earlier, later in pairwise(spans)):
        return [f"replica {name!r} does not prefill first come, first served, one at a time"]
    return []
