"""Fleet problems as files (``schema = "optsched/fleet-problem"``): published ones, entered again, and one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from optsched.capacity.problem import FleetProblem
from optsched.domain.frozen import Frozen
from optsched.domain.scenario import Role
from optsched.errors import SpecError
from optsched.files import load


class TypeRow(Frozen):
    """A replica type.

    Attributes
    ----------
    cost
        Objective per replica.
    uses
        Units of each resource that one replica takes.
    rate_per_s
        Requests per second that one replica sustains of each class that it can serve.
    """

    name: str
    role: Role = "mixed"
    cost: float = Field(ge=0)
    uses: dict[str, float] = {}
    rate_per_s: dict[str, float]


class FleetProblemFile(Frozen):
    """A fleet problem by names; see `optsched.capacity.problem.FleetProblem`.

    Attributes
    ----------
    source
        Where its figures were read.
    """

    title: str
    source: str
    demand_per_s: dict[str, float]
    limits: dict[str, float] = {}
    types: tuple[TypeRow, ...] = Field(min_length=1)
    whole: bool = False


def load_fleet_problem(path: Path | str) -> FleetProblem:
    """Read a fleet problem.

    Raises
    ------
    SpecError
        If the file is wrong, or a type names a class or resource that it does not list.
    """
    data = load(FleetProblemFile, "fleet-problem", path)
    classes, resources = list(data.demand_per_s), list(data.limits)
    for index, row in enumerate(data.types):
        for field, names, known in (("rate_per_s", row.rate_per_s, classes), ("uses", row.uses, resources)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise SpecError(f"{unknown[0]!r} is not among {', '.join(known)}", file=path, field=f"types.{index}.{field}")
    return FleetProblem(
        classes=tuple(classes), demand_per_s=np.array(list(data.demand_per_s.values()), float),
        types=tuple(row.name for row in data.types), roles=tuple(row.role for row in data.types),
        rate_per_s=np.array([[row.rate_per_s.get(name, 0.0) for name in classes] for row in data.types]),
        cost=np.array([row.cost for row in data.types]), resources=tuple(resources),
        uses=np.array([[row.uses.get(name, 0.0) for name in resources] for row in data.types]).reshape(len(data.types), -1),
        limits=np.array(list(data.limits.values()), float), whole=data.whole,
    )  # fmt: skip
