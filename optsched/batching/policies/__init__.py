"""Online batching policies by name; the compiled functions are in `optsched.batching.policies.dispatch`."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from optsched.errors import SpecError, UnknownNameError

POLICIES: dict[str, dict[str, float]] = {
    "apt-serve": {"count_violators": 0.0},
    "apt-serve-decay": {"count_violators": 0.0, "half_life_s": 10.0},
    "apt-serve-exact": {"count_violators": 0.0},
    "attain": {"chunk_tokens": 512.0, "lost_share": 0.0, "headroom_share": 0.05},
    "density": {"count_violators": 0.0},
    "fastgen": {"forward_tokens": 768.0},
    "fcfs-demote": {},
    "paced": {"after_tokens": 300.0, "pace_s": 0.06, "above_share": 0.25, "append_tokens": 256.0, "chunk_tokens": 2048.0},
    "random": {"seed": 0.0},
    "sarathi": {"chunk_tokens": 512.0},
    "sjf": {},
    "vllm": {},
    "vllm-chunked": {},
}
"""Policies by name, and each one's own parameters with defaults, in the order of `optsched.batching.state.Engine.parameters`."""

TARGETS: dict[str, float] = {"ttft_slo_s": 1.0, "tbt_slo_s": 1.0}
"""What every policy can be told, and the defaults: pending times beyond which a request counts as violating its target."""


STEADY = frozenset({"fastgen", "random", "sarathi", "sjf", "vllm", "vllm-chunked"})
"""Policies that do not look at the clock: whom they refuse, they refuse again while memory shrinks and nobody comes or goes."""

FIRST_COME = frozenset({"sarathi", "vllm", "vllm-chunked"})
"""Those of them that admit nobody past one who has waited longer, so that it does not matter who comes behind."""

HYBRID = frozenset({"apt-serve", "apt-serve-decay", "apt-serve-exact"})
"""Policies that hold requests as hidden cache where that is smaller than KV cache."""

PACING = frozenset({"paced"})
"""Policies that may leave out running requests although all decode and all of it fits."""


def check_policy(name: str) -> None:
    """Refuse a name that no policy has.

    Raises
    ------
    UnknownNameError
        If there is no policy of that name.
    """
    if name not in POLICIES:
        raise UnknownNameError("batching policy", name, POLICIES, "List them with: optsched show policies")


def policy_parameters(policy: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return the parameters of a batching policy, defaults filled in.

    Raises
    ------
    UnknownNameError
        If there is no policy of that name.
    SpecError
        If a parameter is unknown, a target is not positive, or another parameter is negative or not finite.
    """
    check_policy(policy)
    known = {**TARGETS, **POLICIES[policy]}
    for name, value in given.items():
        if name not in known:
            raise SpecError(
                f"unknown parameter {name!r} of batching policy {policy!r}; there are: {', '.join(known)}",
                field="batching_parameters",
            )
        if name in TARGETS and not value > 0:
            raise SpecError(f"{value!r}: must be a positive number of seconds", field=f"batching_parameters.{name}")
        if not 0 <= value < inf:
            raise SpecError(f"{value!r}: must be a non-negative number", field=f"batching_parameters.{name}")
    return {**known, **given}
