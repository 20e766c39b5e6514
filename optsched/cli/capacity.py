"""``optsched capacity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from optsched.cli.asked import THEIR_OWN, Conversations, read_scenario
from optsched.cli.capacity_answer import capacity_json, in_words, outcome_json, print_capacity
from optsched.cli.capacity_beyond import Beyond
from optsched.cli.capacity_rate import print_rate, rate_json
from optsched.cli.output import emit_json, print_table, progress, warn

if TYPE_CHECKING:
    from optsched.capacity.solve import FleetInfeasibleError
    from optsched.domain.scenario import Scenario
    from optsched.planner.capacity_answer import CapacityPlan
    from optsched.planner.sweep import Question

MOST_RATES = 1000


def capacity(
    scenario: str,
    /,
    *,
    conversations: Conversations = THEIR_OWN,
    sweep: str | None = None,
    maximise: Literal["rate"] | None = None,
    out: Path | None = None,
    pareto: bool = False,
    robustness: bool = False,
    explain: bool = False,
    json: bool = False,
) -> None:
    """Find the cheapest fleet that keeps a scenario's targets, in simulation too.

    Parameters
    ----------
    scenario
        A scenario file (.toml), or the name of a packaged one (optsched show scenarios).
    conversations
        Which conversations; fleets are tried with the seeds that follow, too.
    sweep
        Ask for several rates, first:last:step, as in rate=1:10:1; prints a line for each. Many are asked in several processes.
    maximise
        rate: find the fleet of the whole supply that sustains the highest rate, instead of the cheapest for a rate.
    out
        Write the plan of the fleet to this file, for simulate and run; with several services or periods, a set of plans of
        which FILE#NAME is one.
    pareto
        Also print fleets of which none is better in money, energy and latency at once.
    robustness
        Also print what the plan does under other rates and output lengths, and up to which it keeps the targets.
    explain
        Say why other replica types take no part.
    json
        Print one JSON object.
    """
    from optsched.capacity.solve import FleetInfeasibleError
    from optsched.errors import SpecError
    from optsched.planner.capacity import capacity as find
    from optsched.planner.sweep import Question

    base, asked = read_scenario(scenario)
    rate, trace, seed = conversations.rate_per_s, conversations.trace, conversations.seed
    if sweep is not None:
        if rate is not None or out is not None or pareto or robustness or maximise:
            reason = "several rates have no one rate and no one plan; leave out --rate, --out, --maximise, --pareto, --robustness"
            raise SpecError(reason, field="--sweep")
        _sweep([Question(asked, base, trace, each, seed) for each in _rates(sweep)], json)
        return
    if maximise is not None:
        if rate is not None or pareto or robustness:
            raise SpecError("the rate is the answer; leave out --rate, --pareto and --robustness", field="--maximise")
        _largest_rate(asked, base, conversations, out, json)
        return
    try:
        with progress("trying fleets") as advance:
            found = find(asked, base=base, trace=trace, rate_per_s=rate, seed=seed, progress=advance)
    except FleetInfeasibleError as error:
        if json:
            emit_json(infeasible_json(error))
        raise
    if out is not None:
        _save(found, out)
    more = _beyond(asked, found, pareto, robustness)
    if json:
        emit_json({**capacity_json(found), **more.json()})
        return
    print_capacity(found, explain)
    more.print()
    if out is not None:
        warn(f"Plan written to {out}")


def _largest_rate(scenario: Scenario, base: Path, conversations: Conversations, out: Path | None, json: bool) -> None:
    from optsched import files
    from optsched.planner.capacity_rate import largest_rate

    with progress("trying fleets") as advance:
        found = largest_rate(scenario, base=base, trace=conversations.trace, seed=conversations.seed, progress=advance)
    if out is not None:
        files.save(found.planned.plan, "plan", out)
    if json:
        emit_json(rate_json(found))
        return
    print_rate(found)
    if out is not None:
        warn(f"Plan written to {out}")


def _beyond(scenario: Scenario, found: CapacityPlan, pareto: bool, robustness: bool) -> Beyond:
    from optsched.planner.capacity_front import pareto as front
    from optsched.planner.robustness import robustness as bears

    points, borne = None, None
    if pareto:
        with progress("drawing the front") as advance:
            points = front(scenario, found, progress=advance)
    if robustness:
        with progress("disturbing the plan") as advance:
            borne = {each.pool.name: bears(each.planned.plan, each.planned.workload, progress=advance) for each in found.pools}
    return Beyond(points, borne)


def _save(found: CapacityPlan, out: Path) -> None:
    from optsched import files
    from optsched.domain.plan import NamedPlan, PlanSet

    if len(found.pools) == 1:
        files.save(found.planned.plan, "plan", out)
        return
    several = len({each.pool.period for each in found.pools}) > 1
    plans = tuple(
        NamedPlan(name=each.pool.name, hours=each.pool.hours if several else None, plan=each.planned.plan) for each in found.pools
    )
    files.save(PlanSet(plans=plans), "plan-set", out)


def infeasible_json(error: FleetInfeasibleError) -> dict[str, object]:
    """Return as plain data that nothing serves a scenario, and which limits to relax."""
    relax = [{"limit": each.limit, "from": each.now, "to": each.needed} for each in error.relax]
    return {"infeasible": {"relax": relax, "reason": str(error)}}


def _sweep(questions: list[Question], json: bool) -> None:
    from optsched.planner.sweep import sweep

    with progress("sweeping", total=len(questions)) as advance:
        outcomes = sweep(questions, progress=advance)
    if json:
        emit_json({"sweep": [outcome_json(outcome) for outcome in outcomes]})
        return
    cells = [
        (
            f"{outcome.question.rate_per_s:g}", outcome.infeasible or in_words(outcome.fleet),
            "-" if outcome.usd_per_hour is None else f"{outcome.usd_per_hour:.4g}",
        )
        for outcome in outcomes
    ]  # fmt: skip
    print_table("Cheapest fleets", ("conversations/s", "fleet", "USD/h"), cells)


def _rates(text: str) -> list[float]:
    from optsched.errors import SpecError

    rule = f"{text!r}: give rate=FIRST:LAST:STEP, as in rate=1:10:1, with positive numbers and at most {MOST_RATES:,} rates"
    name, _, numbers = text.partition("=")
    try:
        first, last, step = (float(part) for part in numbers.split(":"))
    except ValueError as error:
        raise SpecError(rule, field="--sweep") from error
    if name != "rate" or not (0 < first <= last < float("inf") and step > 0) or (last - first) / step >= MOST_RATES:
        raise SpecError(rule, field="--sweep")
    return [float(rate) for rate in np.arange(first, last + step / 1e6, step)]
