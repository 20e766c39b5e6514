"""Set the parameters of policy ``adaptive`` for a scenario: a small grid, simulated with other arrivals than the plan's own.

The grid is in units of the TBT target T of the scenario (the standalone gap times its factor, or its seconds). Per fleet:

| what | values |
|---|---|
| whether decodes gather while the load is low (``start_s``) | the default, 0 |
| steps beyond which a replica takes nobody in (``longest_step_s``) | no limit, each of `HOLDS` T |
| pace of long decodes (``pace_s``, batching policy ``paced`` only) | none, each of `PACES` T |
| share of the pool above which they are paced (``above_share``) | each of `ABOVE` |

What the scenario gives itself is kept. Without a TBT target the policies' defaults stand for T: nothing is held, and the pace is
the default one or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from optsched.batching.policies import POLICIES as BATCHING
from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics
from optsched.domain.standalone import standalone_latency
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

HOLDS = (0.7, 0.55, 0.43)
PACES = (0.45, 0.85)
ABOVE = (0.25, 0.4)
SEEDS = 2
"""Other arrivals that every setting is simulated with."""

Rank = Callable[[Plan, Metrics], tuple[float, ...]]


def tuned(
    drafts: Sequence[Plan], workload: Workload, rank: Rank, progress: Callable[[float, float], None] | None = None
) -> list[Plan]:
    """Return the draft of the fleet and setting that rank best on average over other arrivals.

    Parameters
    ----------
    drafts
        One per fleet, of policy ``adaptive``.
    workload
        The conversations; with the plan's own arrivals, which are not used.
    rank
        What is least for the best plan: by how far it misses the targets, then the objectives.
    progress
        Called with the settings simulated so far and their number.

    Raises
    ------
    InfeasibleError
        If no fleet can serve the conversations.
    """
    options = [option for draft in drafts for option in settings(draft, workload)]
    others = [other_arrivals(drafts[0], number) for number in range(1, SEEDS + 1)]
    best: tuple[tuple[float, ...], int] | None = None
    failure: InfeasibleError | None = None
    for number, option in enumerate(options):
        try:
            ranks = [rank(option, measure_plan(option, simulate(option, other, record_steps=False), other)) for other in others]
        except InfeasibleError as error:
            failure = error
        else:
            mean = tuple(float(value) for value in np.mean(ranks, axis=0))
            best = min(best or (mean, number), (mean, number))
        if progress is not None:
            progress(number + 1, len(options))
    if best is None:
        raise failure or InfeasibleError("No fleet of the supply can serve this scenario. Raise a count in [supply].")
    return [options[best[1]]]


def settings(draft: Plan, workload: Workload) -> Iterator[Plan]:
    """Yield the draft under every setting of the grid, the plainest first; those of its parameters that are given stay."""
    target_s = tbt_target_s(draft, workload)
    holds = [{}, *({"longest_step_s": share * target_s} for share in HOLDS if target_s)]
    paces: list[dict[str, float]] = [{}]
    if draft.batching.policy == "paced":
        kept = target_s or BATCHING["paced"]["pace_s"] / PACES[0]
        paces = [{"pace_s": 0.0}]
        paces += [{"pace_s": share * kept, "above_share": above} for share, above in product(PACES, ABOVE)]
    given = draft.placement.parameters, draft.batching.parameters
    gathers: list[dict[str, float]] = [{}, {"start_s": 0.0}]
    for gather, hold, pace in product(_distinct(gathers, given[0]), _distinct(holds, given[0]), _distinct(paces, given[1])):
        yield draft.replace(
            placement=draft.placement.replace(parameters={**gather, **hold, **given[0]}),
            batching=draft.batching.replace(parameters={**pace, **given[1]}),
        )


def tbt_target_s(draft: Plan, workload: Workload) -> float:
    """Return the target of the time between tokens in seconds, the median one if it is relative; 0 without a target."""
    target = draft.slo.tbt
    if target is None:
        return 0.0
    if target.seconds is not None:
        return target.seconds
    alone = standalone_latency(workload, draft.slo.standalone.coefficients, draft.slo.standalone.max_batched_tokens)
    gaps = alone.last_turn_tbt_s[np.isfinite(alone.last_turn_tbt_s)]
    return float(np.median(gaps)) * (target.standalone_factor or 0.0) if len(gaps) else 0.0


def other_arrivals(draft: Plan, number: int) -> Workload:
    """Return the plan's conversations under other arrivals; lengths that are drawn are drawn anew, too."""
    described = draft.workload
    seed = described.seed + 1_000_003 * number  # neighbouring seeds are what people try next
    return load_workload(described.replace(seed=seed, arrivals=described.arrivals.replace(seed=seed)))


def _distinct(options: Sequence[Mapping[str, float]], given: Mapping[str, float]) -> list[dict[str, float]]:
    """Leave out what is given, and what is then the same as another option."""
    found: list[dict[str, float]] = []
    for option in options:
        rest = {name: value for name, value in option.items() if name not in given}
        if rest not in found:
            found.append(rest)
    return found
