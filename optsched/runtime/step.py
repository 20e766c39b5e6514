"""One step of a replica: any mix of prefill chunks and decodes, held as KV or hidden cache."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from optsched.runtime.attention import AttentionPlan, Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.model.transformer import Transformer

Array = np.ndarray


def step(model: Transformer, pool: BlockPool, batch: Batch) -> Int64[Array, " B"]:
    """Compute a batch's new tokens, store their caches, and return the next token of each sequence.

    Parameters
    ----------
    model
        The llm with its weights.
    pool
        The caches; blocks for the new tokens are in the batch's tables already.
    batch
        What to compute.

    Returns
    -------
    Int64[Array, " B"]
        The most likely next token of each sequence that emits one; -1 for the others.
    """
    following = np.full(len(batch.new), -1, dtype=np.int64)
    if batch.emits.any():
        following[batch.emits] = step_logits(model, pool, batch).argmax(dim=-1).cpu().numpy()
    else:
        residual_stream(model, pool, batch)
    return following


def step_logits(model: Transformer, pool: BlockPool, batch: Batch) -> Tensor:
    """Do as `step`, but return the logits (sequences that emit, vocabulary)."""
    stream = residual_stream(model, pool, batch)
    last = torch.from_numpy((np.cumsum(batch.new) - 1)[batch.emits]).to(model.device)
    with torch.inference_mode():
        return model.logits(stream[last])


def residual_stream(model: Transformer, pool: BlockPool, batch: Batch) -> Tensor:
    """Compute a batch's new tokens, store their caches, and return the last layer's residual stream (T, d)."""
    if model.group is not None:
        model.group.announce(batch)
    with torch.inference_mode():
        plan = AttentionPlan(model, pool, batch)
        positions = torch.from_numpy(plan.positions).to(model.device)
        stream = model.embed(torch.from_numpy(batch.tokens).to(model.device), positions)
        angles = model.angles(positions)
        for layer in range(model.llm.num_layers):
            x = model.attention_input(layer, stream)
            query, key_value = model.project(layer, x, angles)
            stream = model.after_attention(layer, stream, plan.attend(layer, x, query, key_value))
    return stream


def forward(model: Transformer, tokens: Tensor) -> Tensor:
    """Return the logits (T, vocabulary) of a whole sequence (T,) without any cache: what every step must agree with."""
    with torch.inference_mode():
        positions = torch.arange(len(tokens), device=model.device)
        stream, angles = model.embed(tokens, positions), model.angles(positions)
        for layer in range(model.llm.num_layers):
            query, key_value = model.project(layer, model.attention_input(layer, stream), angles)
            heads, key, value = (part.transpose(0, 1)[None] for part in (query, key_value[:, 0], key_value[:, 1]))
            attended = functional.scaled_dot_product_attention(
                heads, key, value, is_causal=True, enable_gqa=heads.shape[1] != key.shape[1]
            )
            stream = model.after_attention(layer, stream, attended[0].transpose(0, 1).flatten(1))
        return model.logits(stream)
