"""Placement policies by name; importing them needs no solver and no compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import cast

from optsched.errors import SpecError, UnknownNameError
from optsched.placement.policies.adaptive import Adaptive
from optsched.placement.policies.collocated import Collocated
from optsched.placement.policies.conserve import ConServe
from optsched.placement.policies.full_disaggregation import FullDisaggregation
from optsched.placement.policies.optimised import Optimised
from optsched.placement.policies.per_turn import PerTurn, PerTurnEmulated
from optsched.placement.view import PlacementPolicy

Number = float | int | bool

POLICIES: dict[str, type[PlacementPolicy]] = {
    "adaptive": Adaptive,
    "collocated": Collocated,
    "conserve": ConServe,
    "full-disaggregation": FullDisaggregation,
    "optimised": Optimised,
    "per-turn": PerTurn,
    "per-turn-emulated": PerTurnEmulated,
}

_DATA = "assignments"  # a plan's data, not one of its numbers

ALL_MIXED = frozenset({"adaptive", "collocated"})
"""Policies that want every replica to prefill and decode."""

PER_TURN = frozenset({"full-disaggregation", "per-turn", "per-turn-emulated"})
"""Policies under which later turns may leave the replica that holds their cache."""

CARRY_BACK = PER_TURN - {"full-disaggregation"}
"""Policies that carry cache from decoders to other replicas, too."""


def parameter_names(name: str) -> tuple[str, ...]:
    """Return the names of a policy's parameters.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    """
    return tuple(_defaults(name))


def make_policy(
    name: str, parameters: Mapping[str, float], assignments: Mapping[int, tuple[int, int]] | None = None
) -> PlacementPolicy:
    """Build a placement policy from what a plan says about it.

    Parameters
    ----------
    name
        One of `POLICIES`.
    parameters
        Its parameters by name; those left out keep their defaults; switches are 0 or 1.
    assignments
        For ``optimised``: indices of the prefill and the decode replica by index of the conversation.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    SpecError
        If a parameter is unknown or out of range, or assignments are missing where they are needed.
    """
    known = _defaults(name)
    if name == "optimised" and assignments is None:
        raise SpecError(f"placement policy {name!r} follows assignments, and the plan has none; choose another policy")
    values = {key: _checked(name, known, key, value) for key, value in parameters.items()}
    if name == "optimised":
        return Optimised(dict(assignments or {}))
    try:
        return POLICIES[name](**values)
    except SpecError as error:
        raise SpecError(error.reason, field=f"placement.parameters.{error.field}") from error


def always_on(policy: PlacementPolicy, roles: Sequence[str]) -> int | None:
    """Return the replica that takes every conversation at once whatever happens; None: the policy has to be asked.

    Parameters
    ----------
    policy
        The placement policy.
    roles
        Roles of the plan's replicas.
    """
    alone = len(roles) == 1 and roles[0] == "mixed"
    return 0 if alone and isinstance(policy, Collocated) and not policy.admission else None


def _defaults(name: str) -> dict[str, Number]:
    """Return a policy's parameters by name, with their defaults."""
    if name not in POLICIES:
        raise UnknownNameError("placement policy", name, POLICIES, "List them with: optsched show policies")
    return {field.name: cast("Number", field.default) for field in fields(POLICIES[name]) if field.name != _DATA}  # type: ignore[arg-type]


def _checked(name: str, known: Mapping[str, Number], key: str, value: float) -> Number:
    """Return a parameter as the policy takes it: a switch, a whole number or a number; or say what is wrong."""
    place = f"placement.parameters.{key}"
    if key not in known:
        names = ", ".join(sorted(known)) or "none"
        raise SpecError(f"unknown parameter of placement policy {name!r}; it has: {names}", field=place)
    if isinstance(known[key], bool):
        if value not in (0, 1):
            raise SpecError(f"{value!r}: a switch; give 0 or 1", field=place)
        return bool(value)
    if isinstance(known[key], int):
        if not (value >= 0 and float(value).is_integer()):
            raise SpecError(f"{value!r}: must be a whole number, 0 or more", field=place)
        return int(value)
    return float(value)
