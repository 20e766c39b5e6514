"""Durations of collectives between GPUs, as other people measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from optsched.errors import SpecError

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
COLUMNS = ("kind", "gpus", "nodes", "num_bytes", "seconds")


@dataclass(frozen=True, slots=True)
class CollectiveRows:
    """Collectives of one group of GPUs that does nothing else.

    Attributes
    ----------
    kind
        A `Kind`; ``send`` is from one GPU to another.
    gpus, nodes
        GPUs of the group, and nodes that they are spread over evenly.
    num_bytes
        Of the whole vector: what every GPU holds before an all-reduce or an all-to-all and after an all-gather.
    seconds
        Duration.
    source
        Where the rows were published.
    left_out
        Rows of the files that are not here, by the reason.
    """

    kind: Shaped[np.ndarray, " N"]
    gpus: Int64[np.ndarray, " N"]
    nodes: Int64[np.ndarray, " N"]
    num_bytes: Float64[np.ndarray, " N"]
    seconds: Float64[np.ndarray, " N"]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.seconds)

    def where(self, chosen: Bool[np.ndarray, " N"]) -> CollectiveRows:
        """Return the chosen rows."""
        return CollectiveRows(
            **{name: getattr(self, name)[chosen] for name in COLUMNS}, source=self.source, left_out=self.left_out
        )

    def keys(self) -> list[str]:
        """Return a text per row that names its shape and no link or time: the same shape has the same key anywhere."""
        columns = (self.kind, self.gpus, self.nodes, self.num_bytes)
        return [f"{kind} p{gpus:d} nodes{nodes:d} {size:.0f}" for kind, gpus, nodes, size in zip(*columns, strict=True)]


def joined(parts: Sequence[CollectiveRows]) -> CollectiveRows:
    """Return the rows of several sources as one.

    Raises
    ------
    SpecError
        If there is no part.
    """
    if not parts:
        raise SpecError("no collectives to join; give at least one table")
    left_out: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return CollectiveRows(**columns, source="; ".join(dict.fromkeys(part.source for part in parts)), left_out=left_out)
