"""The compiled function of a batching policy, for plain Python and, by its address, for compiled loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.policies import POLICIES, check_policy
from optsched.batching.state import MOST_PARAMETERS, Counts, Decision, Engine, Requests
from optsched.compiled import address_of, call_by_address, compile_for

Array = np.ndarray
Policy = Callable[[Requests, Int64[Array, " q"], Counts, Engine, Decision], int]


def _sample() -> tuple[Requests, Int64[Array, " q"], Counts, Engine, Decision]:
    """Return arguments of the types that every policy is compiled for."""
    engine = Engine(0.0, 1, 1, 16, 0, 1, 1, 0.0, 0.0, 1.0, 1.0)
    return Requests.empty(1), np.zeros(0, np.int64), Counts(0, 0, 0), engine, Decision.empty(1)


call_policy: Callable[[int, Requests, Int64[Array, " q"], Counts, Engine, Decision], int] = call_by_address(_sample)
"""Call the policy at an address (`policy_address`) from compiled code, so that a loop is compiled once for all policies."""


@lru_cache(maxsize=64)
def compiled_policy(name: str) -> Policy:
    """Return the compiled `decide` of a policy; only the one that is asked for is imported and compiled.

    Fields of the `Engine` that it is called with must keep their types: ``hidden_ratio=0.0``, not 0.

    Raises
    ------
    UnknownNameError
        If there is no policy of that name.
    """
    check_policy(name)
    decide: Any = import_module(f"optsched.batching.policies.{name.replace('-', '_')}").decide
    policy: Policy = compile_for(decide, _sample())
    return policy


@lru_cache(maxsize=64)
def policy_address(name: str) -> int:
    """Return the address of a policy's compiled `decide`, for `call_policy` in this process.

    Raises
    ------
    UnknownNameError
        If there is no policy of that name.
    """
    return address_of(compiled_policy(name), _sample())


def own_parameters(policy: str, parameters: Mapping[str, float]) -> Float64[Array, " p"]:
    """Return a policy's own parameters by position, as `optsched.batching.state.Engine` carries them."""
    values = np.zeros(MOST_PARAMETERS)
    names = list(POLICIES[policy])
    values[: len(names)] = [parameters[name] for name in names]
    return values
