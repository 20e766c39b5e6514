"""Which measurements are set aside before anything is fitted: a fifth of the shapes, and every shape of some llms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int64

from optsched import catalog
from optsched.domain.llm import Llm
from optsched.errors import ProblemError

HELDOUT_SHARE = 0.2
# Chosen before any law was fitted: a large and a small dense llm and a routed one, whose shapes occur in public tables.
HELDOUT_LLMS = ("llama-3.1-70b", "qwen3-8b", "mixtral-8x7b")
_TP = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Split:
    """Masks of the rows to fit to, of held-out shapes, and of the shapes of held-out llms; every row is in exactly one."""

    train: Bool[np.ndarray, " S"]
    heldout_shapes: Bool[np.ndarray, " S"]
    heldout_llms: Bool[np.ndarray, " S"]


def heldout_shapes(keys: Int64[np.ndarray, "S K"] | Sequence[str]) -> Bool[np.ndarray, " S"]:
    """Return which rows are held out: a fifth of the distinct keys, by a stable hash, so the same shapes for every tier.

    Parameters
    ----------
    keys
        The shape of each row, as whole numbers or as text. Rows of one shape share their fate.
    """
    texts = np.asarray(keys) if not isinstance(keys, np.ndarray) else keys
    distinct, inverse = np.unique(texts, axis=0, return_inverse=True)
    drawn = np.array([_draw(row) for row in distinct], dtype=bool)
    return np.asarray(drawn[inverse.reshape(-1)], dtype=bool) if len(distinct) else np.zeros(0, dtype=bool)


def _draw(key: Int64[np.ndarray, " K"]) -> bool:
    text = ",".join(str(part) for part in np.atleast_1d(key).tolist())
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELDOUT_SHARE * 2**64


def split(keys: Int64[np.ndarray, "S K"] | Sequence[str], of_heldout_llm: Bool[np.ndarray, " S"] | None = None) -> Split:
    """Divide rows into those to fit to and those held out.

    Parameters
    ----------
    keys
        As in `heldout_shapes`.
    of_heldout_llm
        Rows whose shape belongs to a held-out llm (`gemm_of_heldout_llm` and its like); they are never fitted to. None: none.

    Raises
    ------
    ProblemError
        If the two differ in length.
    """
    drawn = heldout_shapes(keys)
    llms = np.zeros(len(drawn), dtype=bool) if of_heldout_llm is None else np.asarray(of_heldout_llm, dtype=bool)
    if len(llms) != len(drawn):
        raise ProblemError(f"{len(llms)} marks of held-out llms for {len(drawn)} rows; give one per row")
    return Split(train=~drawn & ~llms, heldout_shapes=drawn & ~llms, heldout_llms=llms)


def gemm_shapes(llm: Llm, tp: int) -> set[tuple[int, int]]:
    """Return the (inner, outer) widths of an llm's matrix products on each of `tp` GPUs, without latent attention's."""
    d, inputs = llm.hidden_size, 2 if llm.gated_ffn else 1
    query, cached = llm.num_heads * llm.head_dim, llm.kv_width
    local = cached // min(tp, llm.num_kv_heads)
    shapes = {(d, query // tp + local), (query // tp, d), (d, llm.vocab_size // tp)}
    if llm.moe is None or llm.moe.num_dense_layers:
        shapes |= {(d, inputs * llm.ffn_size // tp), (llm.ffn_size // tp, d)}
    return shapes


def head_shapes(llm: Llm, tp: int) -> tuple[int, int, int]:
    """Return an llm's query heads, KV heads and head width on each of `tp` GPUs."""
    return llm.num_heads // tp, max(1, llm.num_kv_heads // tp), llm.head_dim


@cache
def _heldout_gemms() -> frozenset[tuple[int, int]]:
    return frozenset(shape for name in HELDOUT_LLMS for tp in _TP for shape in gemm_shapes(catalog.llm(name), tp))


@cache
def _heldout_heads() -> frozenset[tuple[int, int, int]]:
    return frozenset(head_shapes(catalog.llm(name), tp) for name in HELDOUT_LLMS for tp in _TP)


@cache
def _heldout_experts() -> frozenset[tuple[int, int, int, int]]:
    found = (catalog.llm(name) for name in HELDOUT_LLMS)
    return frozenset(
        (each.hidden_size, each.moe.expert_size, each.moe.num_experts, each.moe.experts_per_token) for each in found if each.moe
    )


def gemm_of_heldout_llm(inner: Int64[np.ndarray, " S"], outer: Int64[np.ndarray, " S"]) -> Bool[np.ndarray, " S"]:
    """Return which matrix products have the widths of a held-out llm's at any tensor parallelism."""
    return np.array([pair in _heldout_gemms() for pair in zip(inner.tolist(), outer.tolist(), strict=True)], dtype=bool)


def heads_of_heldout_llm(
    heads: Int64[np.ndarray, " S"], kv_heads: Int64[np.ndarray, " S"], head_dim: Int64[np.ndarray, " S"]
) -> Bool[np.ndarray, " S"]:
    """Return which attentions have the heads of a held-out llm's at any tensor parallelism."""
    rows = zip(heads.tolist(), kv_heads.tolist(), head_dim.tolist(), strict=True)
    return np.array([row in _heldout_heads() for row in rows], dtype=bool)


def experts_of_heldout_llm(
    hidden_size: Int64[np.ndarray, " S"],
    expert_size: Int64[np.ndarray, " S"],
    num_experts: Int64[np.ndarray, " S"],
    experts_per_token: Int64[np.ndarray, " S"],
) -> Bool[np.ndarray, " S"]:
    """Return which routed experts are a held-out llm's; `expert_size` is that of a whole expert."""
    rows = zip(hidden_size.tolist(), expert_size.tolist(), num_experts.tolist(), experts_per_token.tolist(), strict=True)
    return np.array([row in _heldout_experts() for row in rows], dtype=bool)
