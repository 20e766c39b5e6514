"""How many replicas of which type: the problem that a capacity plan solves, and the check of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.scenario import Role
from optsched.errors import ProblemError

Array = np.ndarray
TOLERANCE = 1e-6
"""Share of a demand or limit by which a fleet may miss it: what floating-point solvers can promise."""


@dataclass(frozen=True, eq=False)
class FleetProblem:
    """Choose whole numbers of replicas of A types, and which of J classes of requests each type serves, at the least cost.

    A request is prefilled by types of role prefill or mixed, and decoded by types of role decode or mixed; what a mixed type
    takes, it serves from beginning to end. A class may be split among types in any shares.

    Attributes
    ----------
    classes, demand_per_s
        Names of the classes, and requests per second of each.
    types, roles
        Names of the replica types and what they do.
    rate_per_s
        Requests per second of class j that one replica of type a sustains when it serves nothing else; 0: it cannot.
    utilisation
        Share of that rate that may be used.
    cost, request_cost
        Objective per replica of a type, and per request per second of a class that a type serves.
    resources, uses, limits
        What there is only so much of (GPUs of a tier, watts): units that one replica takes, and units that there are.
    present, follows, change_cost
        Replicas that run today; or the type, of the period before, whose replicas a type's carry on (-1: none); and the cost
        of adding or removing one.
    whole
        Whether each class must go to a single type (of each role that it needs).
    lost
        Replicas of a type that one failure takes away, after which the rest must still serve everything; 0: not asked.
    """

    classes: tuple[str, ...]
    demand_per_s: Float64[Array, " J"]
    types: tuple[str, ...]
    roles: tuple[Role, ...]
    rate_per_s: Float64[Array, "A J"]
    cost: Float64[Array, " A"]
    resources: tuple[str, ...]
    uses: Float64[Array, "A K"]
    limits: Float64[Array, " K"]
    utilisation: Float64[Array, " A"] = field(default_factory=lambda: np.zeros(0))
    request_cost: Float64[Array, "A J"] = field(default_factory=lambda: np.zeros((0, 0)))
    present: Int64[Array, " A"] | None = None
    follows: Int64[Array, " A"] | None = None
    change_cost: Float64[Array, " A"] | None = None
    whole: bool = False
    lost: Int64[Array, " A"] | None = None

    def __post_init__(self) -> None:
        """Fill in what was left out and check the rest.

        Raises
        ------
        ProblemError
            If shapes or values contradict each other.
        """
        types, classes, resources = len(self.types), len(self.classes), len(self.resources)
        if self.utilisation.size == 0:
            object.__setattr__(self, "utilisation", np.ones(types))
        if self.request_cost.size == 0:
            object.__setattr__(self, "request_cost", np.zeros((types, classes)))
        shapes = {
            "demand_per_s": (classes,), "roles": (types,), "rate_per_s": (types, classes), "cost": (types,),
            "uses": (types, resources), "limits": (resources,), "utilisation": (types,), "request_cost": (types, classes),
            "present": (types,), "follows": (types,), "change_cost": (types,), "lost": (types,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            if np.shape(value) != shape:
                raise ProblemError(f"{name} has shape {np.shape(value)}, the types, classes and resources ask for {shape}")
            least = -1 if name == "follows" else 0
            if name != "roles" and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) >= least)):
                raise ProblemError(f"{name} must be finite and not negative")
        if np.any((self.utilisation <= 0) | (self.utilisation > 1)):
            raise ProblemError("utilisation must lie in (0, 1]")
        given = (self.present is not None) + (self.follows is not None)
        if given != (self.change_cost is not None):
            raise ProblemError("present (or follows) and change_cost belong together; give both or neither")

    @property
    def prefills(self) -> tuple[int, ...]:
        """Indices of the types that prefill."""
        return tuple(a for a, role in enumerate(self.roles) if role != "decode")

    @property
    def decodes(self) -> tuple[int, ...]:
        """Indices of the types that decode."""
        return tuple(a for a, role in enumerate(self.roles) if role != "prefill")

    def serves(self, a: int, j: int) -> bool:
        """Tell whether a type can serve a class."""
        return bool(self.rate_per_s[a, j] > 0)

    def load(self, a: int, j: int) -> float:
        """Return the replicas of a type that all requests of a class would occupy, at its limit of utilisation."""
        return float(self.demand_per_s[j] / (self.rate_per_s[a, j] * self.utilisation[a]))

    def loads(self) -> Float64[Array, "A J"]:
        """Return the replicas of each type that all requests of each class would occupy; infinite where it cannot serve it."""
        usable = self.rate_per_s * self.utilisation[:, None]
        demand = np.broadcast_to(self.demand_per_s, usable.shape)
        loads: Float64[Array, "A J"] = np.divide(demand, usable, out=np.full(usable.shape, np.inf), where=usable > 0)
        return loads

    def ceiling(self) -> Int64[Array, " A"]:
        """Return per type the replicas of which more would be useless."""
        lost = np.zeros(len(self.types), np.int64) if self.lost is None else self.lost
        loads = np.where(self.rate_per_s > 0, self.loads(), 0.0)
        useful = loads.sum(axis=1)
        most = np.ceil(loads - TOLERANCE).sum(axis=1) if self.whole else np.ceil(useful - TOLERANCE)
        found = np.where(useful > 0, most.astype(np.int64) + lost, 0)
        if self.present is not None:
            found = np.maximum(found, self.present)
        if self.follows is not None:  # replicas may be kept through a quiet period
            while np.any(grown := (self.follows >= 0) & (found < found[self.follows])):
                found[grown] = found[self.follows][grown]
        return found

    def routed(self, counts: Int64[Array, " A"], shares: Float64[Array, "A J"]) -> FleetPlan:
        """Return the plan that sends these shares of each class to each type; what is served more than once over is trimmed."""
        roles, shares = np.array(self.roles), shares.copy()
        shares[roles == "mixed"] /= np.maximum(1.0, shares[roles == "mixed"].sum(axis=0))
        left = 1 - shares[roles == "mixed"].sum(axis=0)
        for role in ("prefill", "decode"):
            total = shares[roles == role].sum(axis=0)
            shares[roles == role] *= np.divide(left, total, out=np.zeros_like(total), where=total > 0)
        return FleetPlan(counts, shares * self.demand_per_s)

    def before(self, counts: Int64[Array, " A"]) -> Int64[Array, " A"]:
        """Return the replicas of each type before a change to the given ones; the given ones where nothing is known."""
        if self.present is not None:
            return self.present
        if self.follows is not None:
            return np.where(self.follows >= 0, counts[self.follows], counts)
        return counts

    def fleet_cost(self, counts: Int64[Array, " A"]) -> float:
        """Return the cost of replicas and of changes, without that of requests."""
        value = float(self.cost @ counts)
        return value if self.change_cost is None else value + float(self.change_cost @ np.abs(counts - self.before(counts)))

    def value(self, plan: FleetPlan) -> float:
        """Return the objective of a plan."""
        return self.fleet_cost(plan.counts) + float((self.request_cost * plan.routed_per_s).sum())

    def violations(self, plan: FleetPlan) -> list[str]:
        """List every rule that a plan breaks; the failures that it must survive are `optsched.capacity.survival`'s to check."""
        broken: list[str] = []
        if np.any(plan.counts < 0) or np.any(plan.routed_per_s < -TOLERANCE * max(1.0, float(self.demand_per_s.max(initial=0)))):
            broken.append("a count or a share of the traffic is negative")
        if np.any((plan.routed_per_s > 0) & (self.rate_per_s <= 0)):
            broken.append("a type serves a class that it cannot serve")
        for name, types in (("prefilled", self.prefills), ("decoded", self.decodes)):
            served = plan.routed_per_s[list(types)].sum(axis=0)
            for j, label in enumerate(self.classes):
                if abs(served[j] - self.demand_per_s[j]) > TOLERANCE * max(1.0, self.demand_per_s[j]):
                    broken.append(f"{served[j]:g} requests/s of {label!r} are {name}, {self.demand_per_s[j]:g} arrive")
        busy = np.divide(plan.routed_per_s, self.rate_per_s, out=np.zeros_like(plan.routed_per_s), where=self.rate_per_s > 0)
        for a, label in enumerate(self.types):
            if busy[a].sum() > self.utilisation[a] * plan.counts[a] * (1 + TOLERANCE) + TOLERANCE:
                broken.append(f"{plan.counts[a]} replicas of {label!r} do the work of {busy[a].sum() / self.utilisation[a]:g}")
        used = plan.counts @ self.uses
        for k, label in enumerate(self.resources):
            if used[k] > self.limits[k] * (1 + TOLERANCE):
                broken.append(f"{used[k]:g} of {label!r} are used, there are {self.limits[k]:g}")
        if self.whole and np.any((plan.routed_per_s > TOLERANCE) & (plan.routed_per_s < self.demand_per_s * (1 - TOLERANCE))):
            broken.append("a class is split")
        return broken


@dataclass(frozen=True, eq=False)
class FleetPlan:
    """Replicas of each type, and requests per second of each class that they serve.

    Attributes
    ----------
    counts
        Replicas of each type.
    routed_per_s
        Requests per second of class j that type a serves (its stage of them).
    """

    counts: Int64[Array, " A"]
    routed_per_s: Float64[Array, "A J"]

    def utilisation(self, problem: FleetProblem) -> Float64[Array, " A"]:
        """Return the share of each type's full rate that is used; 0 where there are no replicas."""
        rate = problem.rate_per_s
        busy = np.divide(self.routed_per_s, rate, out=np.zeros_like(self.routed_per_s), where=rate > 0).sum(axis=1)
        return np.asarray(np.divide(busy, self.counts, out=np.zeros_like(busy), where=self.counts > 0))
