"""A rank's part of an llm under tensor parallelism: some heads and some of the feed-forward's width; the rest is everybody's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.runtime.model.weights import LayerWeights, Weights


def shard_llm(llm: Llm, size: int) -> Llm:
    """Return the shape of one rank's part.

    Raises
    ------
    SpecError
        If the heads or the feed-forward do not divide.
    """
    if llm.num_kv_heads % size or llm.ffn_size % size:
        raise SpecError(
            f"{llm.name} has {llm.num_kv_heads} KV heads and a feed-forward of {llm.ffn_size}, which {size} ranks cannot share "
            "evenly; plan replicas with another tp, or simulate the plan"
        )
    return llm.replace(num_heads=llm.num_heads // size, num_kv_heads=llm.num_kv_heads // size, ffn_size=llm.ffn_size // size)


def shard_weights(llm: Llm, weights: Weights, rank: int, size: int) -> Weights:
    """Return one rank's part of an llm's weights: summed over the ranks, the partial results are the whole ones."""
    layers = tuple(_shard_layer(llm, layer, rank, size) for layer in weights.layers)
    return replace(weights, layers=layers)


def _shard_layer(llm: Llm, layer: LayerWeights, rank: int, size: int) -> LayerWeights:
    q, kv = llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim
    parts = [q, kv, kv]
    ups = [llm.ffn_size] * (2 if llm.gated_ffn else 1)
    return replace(
        layer,
        qkv=_rows(layer.qkv, parts, rank, size),
        qkv_bias=None if layer.qkv_bias is None else _rows(layer.qkv_bias, parts, rank, size),
        out=layer.out.chunk(size, dim=1)[rank].contiguous(),
        out_bias=_once(layer.out_bias, rank),
        up=_rows(layer.up, ups, rank, size),
        up_bias=None if layer.up_bias is None else _rows(layer.up_bias, ups, rank, size),
        down=layer.down.chunk(size, dim=1)[rank].contiguous(),
        down_bias=_once(layer.down_bias, rank),
    )


def _rows(stacked: Tensor, parts: list[int], rank: int, size: int) -> Tensor:
    """Return a rank's rows of each of several matrices that stand one below the other."""
    return torch.cat([part.chunk(size)[rank] for part in torch.split(stacked, parts)])


def _once(bias: Tensor | None, rank: int) -> Tensor | None:
    """Return a bias that is to be added by one rank only."""
    return bias if rank == 0 else None
