"""Durations of layers of routed experts, as other people measured them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.dtypes import Dtype
from optsched.profiles.rows import MeasuredRows


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRows(MeasuredRows):
    """Layers of routed experts on one GPU; all weights of one data type.

    Attributes
    ----------
    tokens
        Tokens of the step, which the GPU all sees.
    hidden_size, expert_size
        Width of the residual stream, and of a whole expert.
    num_experts, experts_per_token
        Of the whole layer.
    tp, groups
        GPUs that share each expert, and groups of GPUs that hold different experts.
    matrices
        Of one expert: 3 with a gate, 2 without.
    rows, touched
        Pairs of a token and an expert on this GPU, and experts among them: expected ones, where the source drew them.
    dtype
        Data type of the weights.
    """

    tokens: Float64[np.ndarray, " N"]
    hidden_size: Int64[np.ndarray, " N"]
    expert_size: Int64[np.ndarray, " N"]
    num_experts: Int64[np.ndarray, " N"]
    experts_per_token: Int64[np.ndarray, " N"]
    tp: Int64[np.ndarray, " N"]
    groups: Int64[np.ndarray, " N"]
    matrices: Int64[np.ndarray, " N"]
    rows: Float64[np.ndarray, " N"]
    touched: Float64[np.ndarray, " N"]
    dtype: Dtype

    def keys(self) -> list[str]:
        """Return a text per row that names its shape and no gpu, routing or time: the same shape has the same key anywhere."""
        names = ("tokens", "hidden_size", "expert_size", "num_experts", "experts_per_token", "tp", "groups")
        columns = zip(*(getattr(self, name) for name in names), strict=True)
        return [f"t{t:.0f} d{d} f{f} e{e} k{k} tp{tp} ep{ep}" for t, d, f, e, k, tp, ep in columns]

    def weights_bytes(self, weight_bytes: float) -> Float64[np.ndarray, " N"]:
        """Return the bytes of the visited experts' weights on this GPU."""
        return np.asarray(self.touched * self.matrices * self.hidden_size * (self.expert_size / self.tp) * weight_bytes)

    def cold(self, weight_bytes: float, memory_bytes_per_s: float, cache_bytes: float) -> ExpertRows:
        """Return the rows that read their weights from memory, as a step does that has passed other layers since.

        Parameters
        ----------
        weight_bytes
            Of one weight.
        memory_bytes_per_s, cache_bytes
            Of the card, and of its last-level cache.

        Notes
        -----
        A benchmark that repeats one layer finds weights in the cache if they fit. Such rows are left out where that can
        matter, the read being more than a quarter of the time, and so are those that are faster than any read.
        """
        weights = self.weights_bytes(weight_bytes)
        read_s = weights / memory_bytes_per_s
        hot = (weights < cache_bytes) & (read_s > 0.25 * self.seconds)
        kept = self.where(~hot, "weights that fit the cache, measured again and again")
        impossible = kept.weights_bytes(weight_bytes) / memory_bytes_per_s > kept.seconds
        return kept.where(~impossible, "faster than the weights can be read")
