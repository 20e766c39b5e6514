"""Online batching policies by name; the compiled functions are in `optsched.batching.policies.dispatch`."""

from __future__ import annotations

from collections.abc import Mapping

from optsched.errors import SpecError, UnknownNameError

POLICIES: dict[str, int] = {"vllm-chunked": 0, "apt-serve": 1}


def policy_id(name: str) -> int:
    """Return the integer by which compiled code knows a policy.

    Raises
    ------
    UnknownNameError
        If there is no policy of that name.
    """
    if name not in POLICIES:
        raise UnknownNameError("batching policy", name, POLICIES, "List them with: optsched show policies")
    return POLICIES[name]


PARAMETERS: dict[str, float] = {"ttft_slo_s": 1.0, "tbt_slo_s": 1.0}
"""What batching policies can be told, and the defaults: pending times beyond which a request counts as violating its target."""


def policy_parameters(given: Mapping[str, float]) -> dict[str, float]:
    """Return the parameters of a batching policy, defaults filled in.

    Raises
    ------
    SpecError
        If one is unknown or not positive.
    """
    for name, value in given.items():
        if name not in PARAMETERS:
            raise SpecError(
                f"unknown parameter {name!r} of a batching policy; there are: {', '.join(PARAMETERS)}",
                field="batching_parameters",
            )
        if not value > 0:
            raise SpecError(f"{value!r}: must be a positive number of seconds", field=f"batching_parameters.{name}")
    return {**PARAMETERS, **given}
