"""The cheapest fleet of few types: counts are tried in the order of their cost, and prices rule most of them out.

With u_a >= 0 the price of a replica of type a, the whole demand costs at least::

    h(u) = sum_j min( min_(a mixed) u_a b_aj,  min_(a prefill) u_a b_aj + min_(a decode) u_a b_aj )

where b_aj replicas serve all of class j. So counts N with ``u N < h(u)`` serve not everything, and by duality there are such
prices for all counts that do not. They are the duals of the program that buys what counts lack at the least cost: for no counts
at all this is the relaxation, whose value no fleet undercuts and whose reduced costs limit every count; for other counts only
the bounds of a few columns change, and the solver goes on from where it stopped.

Counts are listed in slabs of cost above the relaxation's value, within the limits. The cheapest that no price has ruled out yet
is asked: the first that lacks nothing is the optimum. h is computed here, not taken from the solver, so that a wrong dual rules
out nothing that serves everything.

The branch-and-bound method of `optsched.capacity.fleet` takes any problem. This one is several times as fast where there are
many classes and few types, since the classes' rows are in no program with whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optsched.capacity.problem import TOLERANCE, FleetPlan, FleetProblem
from optsched.capacity.purchase import EXACT, Purchase

Array = np.ndarray
MOST_FLOWS = 4_000
"""Pairs of a type and a class beyond which the attempt is not made."""
MOST_POINTS = 100_000
"""Counts listed before the attempt is given up; and `MOST_ASKED`, programs solved."""
MOST_ASKED = 80
MOST_TYPES = 16
"""Types whose reduced costs leave room for one replica."""
FIRST_SLAB = 0.004
"""Width of the first slab, as a share of the relaxation's value; the next is twice as wide."""


def enumerated_fleet(problem: FleetProblem) -> FleetPlan | None:
    """Return the cheapest fleet, or None if this method is not made for the problem, gives up, or there may be none.

    Parameters
    ----------
    problem
        What is asked. Classes may be split, failures and changes have no part in it, and only replicas cost something.
    """
    served = (problem.rate_per_s > 0) & (problem.demand_per_s > 0)
    plain = not problem.whole and problem.lost is None and problem.change_cost is None and not problem.request_cost.any()
    if not plain or not served.any() or int(served.sum()) > MOST_FLOWS or float(problem.cost.min()) <= 0:
        return None
    return _Enumeration(problem).run()


class _Enumeration:
    """One search."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem, self.program = problem, Purchase(problem)
        self.served = np.isfinite(self.program.load)
        self.load = np.where(self.served, self.program.load, 0.0)
        self.asked: list[Float64[Array, " A"]] = []
        """Prices that the program gave; see `ruled_out` for what they mean."""
        self.prices = np.zeros((0, len(problem.types)))
        """Counts that are worth less than 1 at any of these do not serve everything."""
        self.given_up = False

    def run(self) -> FleetPlan | None:
        price = self.program.prices(np.zeros(len(self.problem.types)))
        if price is None:
            return None
        price = np.minimum(price, self.problem.cost)
        (least,), ceiling = self.least_cost(price[None]), self.problem.ceiling()
        if least <= 0:
            return None
        self.learn(price / least)
        # A fleet that serves everything and costs at most C has reduced costs (c - u) N of at most C - h(u).
        reduced, most = self.problem.cost - price, float(self.problem.cost @ ceiling)
        low, width, listed = least * (1 - TOLERANCE), FIRST_SLAB * least, 0
        while low <= most:
            slab = _Slab(low, low + width, reduced, low + width - least)
            points = _points(self.problem, ceiling, slab, MOST_POINTS - listed)
            if points is None:
                return None
            plan = self.cheapest(points)
            if plan is not None or self.given_up:
                return plan
            low, width, listed = slab.high, 2 * width, listed + len(points)
        return None

    def cheapest(self, points: Int64[Array, "n A"]) -> FleetPlan | None:
        """Return the first of these counts that serves everything; None if none does, or it is not worth going on."""
        points = points[~self.ruled_out(points, self.prices)]
        while len(points):
            price = self.program.prices(points[0].astype(float))
            plan = None if price is None else self.program.plan(points[0])
            if plan is not None:
                return plan
            worth = 0.0 if price is None else float(self.least_cost(price[None])[0])
            # Without a price that rules these counts out, the solver's tolerances leave open whether they serve everything.
            if price is None or float(price @ points[0]) >= worth * (1 - EXACT) or len(self.asked) == MOST_ASKED:
                self.given_up = True
                return None
            points = points[~self.ruled_out(points, self.learn(price / worth))]
        return None

    def learn(self, price: Float64[Array, " A"]) -> Float64[Array, "n A"]:
        """Keep a price and those halfway to the ones before: h is concave, so that between two prices it is larger."""
        between = [price, *(0.5 * (price + other) for other in self.asked)]
        found = np.array(between) / self.least_cost(np.array(between))[:, None]
        self.asked.append(price)
        self.prices = np.vstack([self.prices, found])
        return np.asarray(found)

    def ruled_out(self, points: Int64[Array, "m A"], prices: Float64[Array, "n A"]) -> Bool[Array, " m"]:
        """Tell which counts are worth too little at one of these prices."""
        return np.asarray(np.any(points @ prices.T < 1 - EXACT, axis=1))

    def least_cost(self, prices: Float64[Array, "n A"]) -> Float64[Array, " n"]:
        """Return h of each price: what serving everything costs at least."""
        cost = np.where(self.served, prices[:, :, None] * self.load, np.inf)
        roles = np.array(self.problem.roles)
        best = {role: cost[:, roles == role].min(axis=1, initial=np.inf) for role in ("mixed", "prefill", "decode")}
        whole = np.minimum(best["mixed"], best["prefill"] + best["decode"])
        return np.asarray(whole[:, self.program.demanded].sum(axis=1))


@dataclass(frozen=True, eq=False, slots=True)
class _Slab:
    """Counts that cost more than `low` and at most `high`, and at most `room` in reduced costs."""

    low: float
    high: float
    reduced: Float64[Array, " A"]
    room: float


def _points(problem: FleetProblem, ceiling: Int64[Array, " A"], slab: _Slab, most: int) -> Int64[Array, "n A"] | None:
    """List the counts of a slab within the limits, the cheapest first; None if there are too many of them, or of types."""
    afforded = np.minimum(ceiling, np.floor((slab.high / problem.cost) + EXACT))
    used = np.flatnonzero((afforded >= 1) & (slab.reduced <= slab.room))
    if len(used) > MOST_TYPES:
        return None
    order = used[np.argsort(-problem.cost[used], kind="stable")]
    counts, spent = np.zeros((1, len(problem.types)), np.int64), np.zeros(1)
    for a in order.tolist():
        cost, uses = float(problem.cost[a]), problem.uses[a]
        limit = np.minimum((slab.high - spent) / cost, ceiling[a])
        if slab.reduced[a] > 0:
            limit = np.minimum(limit, (slab.room - counts @ slab.reduced) / slab.reduced[a])
        for k in np.flatnonzero(uses > 0).tolist():
            limit = np.minimum(limit, (problem.limits[k] - counts @ problem.uses[:, k]) / uses[k])
        last, first = np.floor(limit + EXACT).astype(np.int64), np.zeros(len(counts), np.int64)
        if a == order[-1]:
            first = np.maximum(0, np.floor((slab.low - spent) / cost * (1 + EXACT)).astype(np.int64) + 1)
        number = np.maximum(0, last - first + 1)
        if int(number.sum()) > most:
            return None
        row = np.repeat(np.arange(len(counts)), number)
        counts = counts[row]
        counts[:, a] = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number)
        spent = counts @ problem.cost
    return np.asarray(counts[np.argsort(spent, kind="stable")])
