"""Sums over the operations or the messages of a step, those of one kind as one array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from optsched.cost.communication import Communication
from optsched.cost.operations import Operation
from optsched.cost.precision import Scalar

OperationT = TypeVar("OperationT", Operation, Communication)


def by_kind(operations: Mapping[str, OperationT]) -> list[tuple[tuple[str, ...], OperationT]]:
    """Return the names of alike operations, and the operations of each kind as one whose leaves are arrays."""
    kinds: dict[object, dict[str, OperationT]] = {}
    for name, operation in operations.items():
        kinds.setdefault(jax.tree.structure(operation), {})[name] = operation
    return [
        (tuple(alike), jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *alike.values()))
        for alike in kinds.values()
    ]


def total(operations: Mapping[str, OperationT], of: Callable[[OperationT], Scalar]) -> Scalar:
    """Return the sum of something over operations, those of one kind evaluated as one array.

    Parameters
    ----------
    operations
        Of any kinds.
    of
        What to sum.

    Notes
    -----
    A step has a dozen matrix products; evaluated one by one, XLA takes a quarter of a minute to compile their gradient.
    """
    sums = [jax.vmap(of)(alike).sum() if len(names) > 1 else of(operations[names[0]]) for names, alike in by_kind(operations)]
    return jnp.stack(sums).sum()
