"""Online batching policies by name; the compiled functions are in `optsched.batching.policies.dispatch`."""

from __future__ import annotations

from optsched.errors import UnknownNameError

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
