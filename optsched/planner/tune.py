"""Set the parameters of policy ``adaptive`` for a scenario: a small grid, simulated with other arrivals than the plan's own.

Fleets whose replicas all prefill and decode are tried, and those with prefillers and decoders; on these the policy moves every
conversation once, on those it moves whom that helps. The grid is in units of the TBT target T of the scenario (the standalone gap
times its factor, or its seconds). Per fleet:

| what | values |
|---|---|
| whether decodes gather while the load is low (``start_s``) | the default, 0 |
| tokens of prompts beside decodes (``chunk_tokens``, ``paced`` on replicas that do both) | the default, each of `CHUNKS` |
| steps beyond which a replica takes nobody in (``longest_step_s``) | no limit, each of `HOLDS` T |
| pace of long decodes (``pace_s``, batching policy ``paced`` only) | none, each of `PACES` T |
| share of the pool above which they are paced (``above_share``) | each of `ABOVE` |

Shorter chunks lengthen the gaps beside a prompt less, and everybody's prompts take longer; a gentle pace shortens queues and
leaves the time between tokens within its target. Which of them pays depends on the load and on the roles.

What the scenario gives itself is kept. Without a TBT target the policies' defaults stand for T: nothing is held, and the pace is
the default one or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from optsched.batching.policies import POLICIES as BATCHING
from optsched.domain.accounting import alone_of, measure_plan
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics, StandaloneLatency
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError
from optsched.files import canonical_sha256
from optsched.simulator.simulate import simulate
from optsched.traces.loading import load_workload

HOLDS = (0.55, 0.43)
PACES = (0.28, 0.45, 0.85)
ABOVE = (0.25, 0.5)
CHUNKS = (512.0, 256.0)
SEEDS = 2
"""Other arrivals that settings are simulated with."""
FLEETS = 3
"""Fleets whose whole grid is simulated, those that do best with pacing alone."""
KEPT = 4
"""One in so many settings is simulated with all of these arrivals, those that do best with the first."""

Rank = Callable[[Plan, Metrics], tuple[float, ...]]
Progress = Callable[[float, float], None]


def tuned(drafts: Sequence[Plan], rank: Rank, progress: Progress | None = None) -> list[Plan]:
    """Return the draft of the fleet and setting that rank best on average over other arrivals.

    Parameters
    ----------
    drafts
        One per fleet, of policy ``adaptive``.
    rank
        What is least for the best plan: by how far it misses the targets, then the objectives.
    progress
        Called with the simulations so far and their number.

    Raises
    ------
    InfeasibleError
        If no fleet can serve the conversations.
    """
    others = [other_arrivals(drafts[0], number) for number in range(1, SEEDS + 1)]
    trials = _Trials(others, [alone_of(drafts[0], other) for other in others], rank, progress)
    grids = [list(settings(draft, trials.others[0])) for draft in drafts]
    if len(grids) > FLEETS:
        sketches = [_paced_only(grid) for grid in grids]
        trials.expected = sum(map(len, sketches)) + FLEETS * max(map(len, grids)) * (1 + (SEEDS - 1) / KEPT)
        led = [(trials.ranked(sketch, 1, 1), grid) for sketch, grid in zip(sketches, grids, strict=True)]
        grids = [grid for _, grid in sorted((pair for pair in led if pair[0]), key=lambda pair: pair[0][0][0])[:FLEETS]]
    options = [option for grid in grids for option in grid]
    trials.expected = trials.done + (1 + (SEEDS - 1) / KEPT) * len(options)
    shortlist = [option for _, option in trials.ranked(options, 1, -(-len(options) // KEPT))]
    best = trials.ranked(shortlist, SEEDS, 1)
    if not best:
        raise trials.failure or InfeasibleError("No fleet of the supply can serve this scenario. Raise a count in [supply].")
    trials.end()
    return [best[0][1]]


class _Trials:
    """Ranks of settings under other arrivals, each simulated once.

    Parameters
    ----------
    others
        The conversations under each of the arrivals.
    alone
        Their latencies with nothing else running.
    rank, progress
        As in `tuned`.
    """

    def __init__(
        self, others: Sequence[Workload], alone: Sequence[StandaloneLatency], rank: Rank, progress: Progress | None
    ) -> None:
        self.others = others
        self._alone = alone
        self.expected, self.done = 0.0, 0
        self.failure: InfeasibleError | None = None
        self._rank, self._progress = rank, progress
        self._known: dict[tuple[str, int], tuple[float, ...] | None] = {}

    def ranked(self, options: Sequence[Plan], seeds: int, keep: int) -> list[tuple[tuple[float, ...], Plan]]:
        """Return the best options by their mean rank over the first so many arrivals, the plainest of equals first."""
        found = []
        for number, option in enumerate(options):
            ranks = [rank for seed in range(seeds) if (rank := self._one(option, seed)) is not None]
            if len(ranks) == seeds:
                found.append((tuple(float(value) for value in np.mean(ranks, axis=0)), number))
        return [(rank, options[number]) for rank, number in sorted(found)[:keep]]

    def end(self) -> None:
        """Report that all is done."""
        if self._progress is not None:
            self._progress(self.done, self.done)

    def _one(self, option: Plan, seed: int) -> tuple[float, ...] | None:
        key = canonical_sha256(option), seed
        if key in self._known:
            return self._known[key]
        other = self.others[seed]
        try:
            log = simulate(option, other, record_steps=False)
            self._known[key] = self._rank(option, measure_plan(option, log, other, alone=self._alone[seed]))
        except InfeasibleError as error:
            self.failure, self._known[key] = error, None
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, max(self.expected, self.done))
        return self._known[key]


def _paced_only(grid: Sequence[Plan]) -> list[Plan]:
    """Return the settings of a grid that differ from its plainest in their pace alone."""
    plain = grid[0]
    chunk = plain.batching.parameters.get("chunk_tokens")
    return [
        option for option in grid
        if option.placement == plain.placement and option.batching.parameters.get("chunk_tokens") == chunk
    ]  # fmt: skip


def settings(draft: Plan, workload: Workload) -> Iterator[Plan]:
    """Yield the draft under every setting of the grid, the plainest first; those of its parameters that are given stay."""
    target_s = tbt_target_s(draft, workload)
    holds = [{}, *({"longest_step_s": share * target_s} for share in HOLDS if target_s)]
    paces: list[dict[str, float]] = [{}]
    if draft.batching.policy == "paced":
        kept = target_s or BATCHING["paced"]["pace_s"] / PACES[-1]
        paces = [{"pace_s": 0.0}]
        paces += [{"pace_s": share * kept, "above_share": above} for share, above in product(PACES, ABOVE)]
    chunks: list[dict[str, float]] = [{}]
    if draft.batching.policy == "paced" and any(replica.role == "mixed" for replica in draft.replicas):
        chunks += [{"chunk_tokens": tokens} for tokens in CHUNKS]
    given = draft.placement.parameters, draft.batching.parameters
    gathers: list[dict[str, float]] = [{}, {"start_s": 0.0}]
    placements = product(_distinct(gathers, given[0]), _distinct(holds, given[0]))
    batches = product(_distinct(paces, given[1]), _distinct(chunks, given[1]))
    for (gather, hold), (pace, chunk) in product(placements, batches):
        yield draft.replace(
            placement=draft.placement.replace(parameters={**gather, **hold, **given[0]}),
            batching=draft.batching.replace(parameters={**pace, **chunk, **given[1]}),
        )


def tbt_target_s(draft: Plan, workload: Workload) -> float:
    """Return the target of the time between tokens in seconds, the median one if it is relative; 0 without a target."""
    target = draft.slo.tbt
    if target is None:
        return 0.0
    if target.seconds is not None:
        return target.seconds
    gaps = alone_of(draft, workload).last_turn_tbt_s
    gaps = gaps[np.isfinite(gaps)]
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
