"""The compiled function of a batching policy, for the event loop and for plain Python alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Int64

from optsched.batching.policies import check_policy
from optsched.batching.state import Counts, Decision, Engine, Requests
from optsched.compiled import type_of

Array = np.ndarray
Policy = Callable[[Requests, Int64[Array, " q"], Counts, Engine, Decision], int]


@lru_cache(maxsize=1)
def policy_type() -> Any:
    """Return numba's type of a policy: what an event loop that is handed a policy is compiled for."""
    sample = (
        Requests.empty(1), np.zeros(0, np.int64), Counts(0, 0, 0), Engine(0.0, 1, 1, 16, 0, 1, 1, 0.0, 0.0, 1.0, 1.0),
        Decision.empty(1),
    )  # fmt: skip
    types: Any = import_module("numba.types")
    return types.FunctionType(types.int64(*(type_of(each) for each in sample)))


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
    decide.compile(policy_type().signature.args)
    decide.disable_compile()
    policy: Policy = decide
    return policy
