"""Placement policies by name; importing them needs no solver and no compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from optsched.errors import SpecError, UnknownNameError
from optsched.placement.policies.collocated import Collocated
from optsched.placement.policies.conserve import ConServe
from optsched.placement.policies.optimised import Optimised
from optsched.placement.view import PlacementPolicy

POLICIES: dict[str, type[Collocated] | type[ConServe] | type[Optimised]] = {
    "collocated": Collocated,
    "conserve": ConServe,
    "optimised": Optimised,
}

_DATA = "assignments"  # a plan's data, not one of its numbers


ALL_MIXED = frozenset({"collocated"})
"""Policies that want every replica to prefill and decode."""


def parameter_names(name: str) -> tuple[str, ...]:
    """Return the names of a policy's parameters.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    """
    return tuple(field.name for field in fields(_class(name)) if field.name != _DATA)


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
    policy = _class(name)
    if policy is Optimised and assignments is None:
        raise SpecError(f"placement policy {name!r} follows assignments, and the plan has none; choose another policy")
    defaults: dict[str, int] = {key: getattr(policy(), key) for key in parameter_names(name)}
    values = {**defaults, **_check(name, parameters, defaults)}
    if policy is Optimised:
        return Optimised(dict(assignments or {}))
    if policy is Collocated:
        return Collocated(bool(values["oracle"]), values["extra_tokens"], bool(values["admission"]))
    return ConServe(oracle=bool(values["oracle"]), extra_tokens=values["extra_tokens"])


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


def _class(name: str) -> type[Collocated] | type[ConServe] | type[Optimised]:
    if name not in POLICIES:
        raise UnknownNameError("placement policy", name, POLICIES, "List them with: optsched show policies")
    return POLICIES[name]


def _check(name: str, parameters: Mapping[str, float], defaults: Mapping[str, int]) -> dict[str, int]:
    """Return whole numbers and switches by name, or say which one is wrong."""
    checked: dict[str, int] = {}
    for key, value in parameters.items():
        place = f"placement.parameters.{key}"
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise SpecError(f"unknown parameter of placement policy {name!r}; it has: {known}", field=place)
        switch = isinstance(defaults[key], bool)
        if switch and value not in (0, 1):
            raise SpecError(f"{value!r}: a switch; give 0 or 1", field=place)
        if not switch and not (value >= 0 and float(value).is_integer()):
            raise SpecError(f"{value!r}: must be a whole number of tokens, 0 or more", field=place)
        checked[key] = bool(value) if switch else int(value)
    return checked
