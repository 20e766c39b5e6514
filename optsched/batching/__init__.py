"""Which requests go into the next batch, as KV or as hidden cache: problems, solvers, policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optsched.batching.problem import BatchPlan, BatchProblem
    from optsched.batching.solved import Solved, Status
    from optsched.batching.solver import solve

__all__ = ["BatchPlan", "BatchProblem", "Solved", "Status", "solve"]

_HOMES = {"BatchPlan": "problem", "BatchProblem": "problem", "Solved": "solved", "Status": "solved", "solve": "solver"}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
