"""Durations of collectives between GPUs, as other people measured them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from optsched.profiles.rows import MeasuredRows

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRows(MeasuredRows):
    """Collectives of one group of GPUs that does nothing else.

    Attributes
    ----------
    kind
        A `Kind`; ``send`` is from one GPU to another.
    gpus, nodes
        GPUs of the group, and nodes that they are spread over evenly.
    num_bytes
        Of the whole vector: what every GPU holds before an all-reduce or an all-to-all and after an all-gather.
    """

    kind: Shaped[np.ndarray, " N"]
    gpus: Int64[np.ndarray, " N"]
    nodes: Int64[np.ndarray, " N"]
    num_bytes: Float64[np.ndarray, " N"]

    def keys(self) -> list[str]:
        """Return a text per row that names its shape and no link or time: the same shape has the same key anywhere."""
        columns = (self.kind, self.gpus, self.nodes, self.num_bytes)
        return [f"{kind} p{gpus:d} nodes{nodes:d} {size:.0f}" for kind, gpus, nodes, size in zip(*columns, strict=True)]
