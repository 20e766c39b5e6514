"""Policies ``adaptive`` and ``optimised`` against eight rivals, true clock: ``python tests/benchmarks/bench_adaptive.py``.

Four A40, the conversations of ConServe's evaluation, each of six offered rates (`adaptive_runs` says who is run on what). Per rate
a front of ``adaptive`` is chosen on the `TUNING` arrivals: its best settings against each rival. On the `UNSEEN` ones each rival is
compared with the point of the front that does best against it. ``optimised`` knows lengths and arrivals; its front is every point.
With ``--journal`` a run that was stopped goes on where it was; remove the file when the code has changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from adaptive_runs import (
    ANY,
    EACH,
    FIGURES,
    FOUR,
    KJ,
    KJ_ON,
    NEAR,
    P95,
    SHOWN,
    THREE,
    Contender,
    Figures,
    Runs,
    clairvoyant,
    online,
    rivals,
    trace,
)
from scipy.stats import t as student

RATES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LOW_RATES = (0.5, 0.75)
"""Those at which fewer than four GPUs are tried."""
TUNING = (101, 102, 103, 104, 105)
UNSEEN = (11, 12, 13, 14, 15)
"""Seeds 1 to 10 were looked at while the rules by which the front is chosen were made."""
FIRST = 1
"""Tuning arrivals that every setting is run with; the `SHORTLIST` best by each of `FIRST_RULES` are run with all."""
SHORTLIST = 5
SIXTH, STRICTLY = 2.0, 0.10
"""At that rate an axis has to be better by that much."""


@cache
def points(foreseen: bool, count: int) -> tuple[Contender, ...]:
    """Return our points on so many GPUs."""
    fleets = FOUR if count == 4 else THREE
    return tuple(clairvoyant(fleets) if foreseen else online(fleets))


def interval(ours: Figures, theirs: Figures, column: int) -> tuple[float, float]:
    """Return the mean of ours over theirs less 1, and half of its 95 % interval over the arrivals, paired."""
    ratio = ours[:, column] / theirs[:, column] - 1
    if len(ratio) == 1:
        return float(ratio[0]), float("inf")
    half = student.ppf(0.975, len(ratio) - 1) * ratio.std(ddof=1) / np.sqrt(len(ratio))
    return float(ratio.mean()), float(half)


def more_missed(ours: Figures, theirs: Figures, columns: Sequence[int]) -> float:
    """Return by how much our figures in some columns exceed those of the targets that a rival misses, in percent, added up."""
    mine, other = ours.mean(axis=0), theirs.mean(axis=0)
    excess = sum(max(0.0, float(mine[i] - other[j])) for i, j in zip(columns, EACH, strict=True))
    return round(excess, 9)


class Standing(NamedTuple):
    """How a point of ours stands against a rival; the less of anything the better.

    Attributes
    ----------
    missed
        Targets that it misses more often, in percent, added up.
    anyone
        By how many percent more conversations miss something.
    p95, joules
        The axes' ratios to the rival's, less 1.
    behind, surely_behind
        By how much it is worse in the axes, and short of what is wanted at the sixth rate; the latter beyond the interval only.
    near
        `missed`, were its targets a tenth shorter, as other arrivals may have it.
    both
        The axes' ratios to the rival's, multiplied.
    risk
        The larger of the axes' ratios less 1, in halves of their intervals.
    """

    missed: float
    anyone: float
    p95: float
    joules: float
    behind: float
    surely_behind: float
    near: float
    both: float
    risk: float


def standing(ours: Figures, theirs: Figures, energy: int, rate: float) -> Standing:
    """Compare a point with a rival."""
    axes = [interval(ours, theirs, column) for column in (P95, energy)]
    short = max(0.0, min(mean for mean, _ in axes) + STRICTLY) if rate == SIXTH else 0.0
    behind, surely = (sum(max(0.0, mean - (half if sure else 0.0)) for mean, half in axes) + short for sure in (False, True))
    both = (1 + axes[0][0]) * (1 + axes[1][0])
    risk = max(mean / max(half, 1e-9) for mean, half in axes)
    missed, near = more_missed(ours, theirs, EACH), more_missed(ours, theirs, NEAR)
    anyone = round(max(0.0, float(ours[:, ANY].mean() - theirs[:, ANY].mean())), 9)
    return Standing(missed, anyone, axes[0][0], axes[1][0], round(behind, 9), round(surely, 9), near, both, risk)


Rule = Callable[[Standing], tuple[float, ...]]
FIRST_RULES: tuple[Rule, ...] = (
    lambda s: (s.missed, s.anyone, s.behind, s.near, s.both),
    lambda s: (s.missed, s.anyone, s.near, s.behind, s.both),
    lambda s: (s.missed, s.anyone, max(0.0, s.p95), s.joules),
)
"""By which settings are shortlisted on the first tuning arrivals."""
RULES: tuple[Rule, ...] = (
    lambda s: (s.missed, s.anyone, s.surely_behind, s.near, s.both),
    lambda s: (s.missed, s.anyone, s.behind, s.near, s.both),
    lambda s: (s.missed, s.anyone, s.near, s.risk),
    lambda s: (s.missed, s.anyone, max(0.0, s.p95), s.joules),
    lambda s: (s.missed, s.anyone, max(0.0, s.joules), s.p95),
)
"""By each of which the best setting against each rival is taken into the front; the last two: the cheapest that is no slower, and
the fastest that is no dearer."""


@cache
def front(runs: Runs, rate: float, energy: int, foreseen: bool) -> dict[str, Contender]:
    """Return our points at a rate: the best of ``adaptive`` on the tuning arrivals against each rival; if foreseen, all."""
    among = {p.name: p for count in ((4,) if energy == KJ else (4, 3)) for p in points(foreseen, count)}
    if foreseen:
        return among
    found: dict[str, Contender] = {}
    for rival in rivals():

        def best(
            names: Iterable[str], seeds: Sequence[int], rules: Sequence[Rule], count: int, rival: Contender = rival
        ) -> set[str]:
            theirs = runs.figures(rival, rate, seeds)
            known = {name: standing(runs.figures(among[name], rate, seeds), theirs, energy, rate) for name in names}
            return {name for rule in rules for name in sorted(known, key=lambda name: (rule(known[name]), name))[:count]}

        shortlist = best(among, TUNING[:FIRST], FIRST_RULES, SHORTLIST)
        found |= {name: among[name] for name in best(shortlist, TUNING, RULES, 1)}
    return found


def choose(runs: Runs, rate: float, rival: Contender, energy: int, foreseen: bool) -> Contender:
    """Return the point of our front that does best against a rival on the unseen arrivals."""
    theirs, among = runs.figures(rival, rate, UNSEEN), front(runs, rate, energy, foreseen)

    def rank(name: str) -> tuple[float, ...]:
        found = standing(runs.figures(among[name], rate, UNSEEN), theirs, energy, rate)
        return found.missed, found.behind if foreseen else found.surely_behind, found.anyone, found.behind, found.both

    return among[min(among, key=rank)]


def verdict(ours: Figures, theirs: Figures, energy: int, foreseen: bool) -> str:
    """Say which of the two axes are no worse (online: within the interval), and whether no more targets are missed."""
    if np.allclose(ours[:, :SHOWN], theirs[:, :SHOWN]):
        return "= rival"
    axes = [interval(ours, theirs, column) for column in (P95, energy)]
    weak = all(mean - (0 if foreseen else half) <= 1e-9 for mean, half in axes)
    strict = weak and min(mean for mean, _ in axes) <= -STRICTLY
    more = [
        f"{FIGURES[i]} {ours[:, i].mean():.2g} for {theirs[:, i].mean():.2g}"
        for i in (*EACH, ANY) if ours[:, i].mean() > theirs[:, i].mean() + 1e-9
    ]  # fmt: skip
    word = "by 10 %" if strict else "yes" if weak else "**no**"
    return word + (f"; more missed: {', '.join(more)}" if more else "")


def table(runs: Runs, rate: float, energy: int, foreseen: bool) -> dict[tuple[float, str], Contender]:
    """Print a rate's rows of one table: all GPUs billed, or only those on; return who is in them."""
    found: dict[tuple[float, str], Contender] = {}
    for rival in rivals():
        point = choose(runs, rate, rival, energy, foreseen)
        ours, theirs = runs.figures(point, rate, UNSEEN), runs.figures(rival, rate, UNSEEN)
        versus = ["{:+.1%} ± {:.1%}".format(*interval(ours, theirs, column)) for column in (P95, energy)]
        shown = [f"{x[:, i].mean():.3g}" for x in (theirs, ours) for i in (P95, energy, ANY)]
        print(
            f"| {rate} | {rival.name} | {' | '.join(shown[:3])} | {point.name} | {' | '.join(shown[3:])} | {' | '.join(versus)} "
            f"| {verdict(ours, theirs, energy, foreseen)} |",
            flush=True,
        )
        found |= {(rate, who.name): who for who in (point, rival)}
    return found


def heading(*names: str) -> None:
    """Print the first two lines of a table."""
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")


def main() -> None:
    """Print for both kinds of points the tables, and every figure of what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="offered rates of the first table")
    parser.add_argument("--low-rates", type=float, nargs="*", default=LOW_RATES, help="of the second, three GPUs tried, too")
    parser.add_argument("--journal", type=Path, help="file that keeps the figures of every execution")
    asked = parser.parse_args()
    runs, listed = Runs(asked.journal), dict[tuple[float, str], Contender]()
    print(f"{'trace' if trace() else 'recipe swe-agent'}, arrivals {UNSEEN}, tuned on {TUNING}", file=sys.stderr)
    for energy, rates in ((KJ, asked.rates), (KJ_ON, asked.low_rates)):
        for foreseen in (False, True):
            ours = "optimised (knows lengths and arrivals)" if foreseen else "adaptive"
            heading("rate", "rival", "p95", FIGURES[energy], "any %", ours, "p95", FIGURES[energy], "any %", "p95 vs", "kJ vs", "dominated")  # fmt: skip
            for rate in rates:
                listed |= table(runs, rate, energy, foreseen)
    heading("rate, who", *FIGURES[:SHOWN])
    for (rate, name), who in sorted(listed.items(), key=lambda pair: pair[0]):
        means = runs.figures(who, rate, UNSEEN).mean(axis=0)[:SHOWN]
        print(f"| {rate}, {name} | " + " | ".join(f"{value:.4g}" for value in means) + " |")


if __name__ == "__main__":
    main()
