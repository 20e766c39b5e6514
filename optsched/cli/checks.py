"""Rules on option values that several commands share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from optsched.domain.scenario import PlacementPolicyName
from optsched.errors import SpecError, UnknownNameError


def positive(option: str, value: float | None) -> float | None:
    """Return a value that must be positive and finite, if it is given at all.

    Raises
    ------
    SpecError
        If it is not.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise SpecError(f"{value:g}: must be a positive, finite number", field=option)
    return value


def policies(names: Sequence[str]) -> tuple[PlacementPolicyName | None, str | None]:
    """Return the placement and the batching policy among the names given with --policy; None: not given.

    Raises
    ------
    UnknownNameError
        If a name is neither kind of policy.
    SpecError
        If two of one kind are given.
    """
    from optsched.batching.policies import POLICIES as BATCHING
    from optsched.placement.policies import POLICIES as PLACEMENT

    placement: list[str] = []
    batching: list[str] = []
    for name in names:
        if name not in PLACEMENT and name not in BATCHING:
            raise UnknownNameError("policy", name, [*PLACEMENT, *BATCHING], "List them with: optsched show policies")
        (placement if name in PLACEMENT else batching).append(name)
    for kind, given in (("placement", placement), ("batching", batching)):
        if len(given) > 1:
            raise SpecError(f"{' and '.join(given)} are both {kind} policies; give one of each kind at most", field="--policy")
    chosen = cast("PlacementPolicyName | None", placement[0] if placement else None)
    return chosen, batching[0] if batching else None
