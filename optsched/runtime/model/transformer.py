"""The mathematics of a layer, on flat tokens: where sequences begin and end is the attention's business alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from optsched.domain.llm import Llm
from optsched.runtime.model.weights import LayerWeights, Weights

if TYPE_CHECKING:
    from optsched.runtime.attention import Batch

OPT_POSITION_OFFSET = 2  # the first two rows of OPT's position table are unused (transformers, OPTLearnedPositionalEmbedding)


class Angles(NamedTuple):
    """Cosines and sines of the rotary angles of some positions, each (T, 1, d_h / 2)."""

    cosine: Tensor
    sine: Tensor


class Group(Protocol):
    """The ranks that share an llm."""

    def announce(self, command: Batch) -> None:
        """Have the other ranks compute the same batch."""
        ...

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum of what all ranks have."""
        ...

    def gather(self, part: Tensor) -> Tensor:
        """Return what all ranks have (T, w), side by side in their order."""
        ...


class Transformer:
    """An llm with its weights, or a rank's part of one.

    Parameters
    ----------
    llm
        Its shape.
    weights
        Its weights, all of one data type on one device.
    group
        Who has the other parts; None: there are none.
    """

    def __init__(self, llm: Llm, weights: Weights, group: Group | None = None) -> None:
        self.llm, self.weights, self.group = llm, weights, group
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._cosine, self._sine = self._rotary_tables()

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        llm = self.llm
        if llm.learned_positions or llm.rope_theta is None:
            empty = torch.zeros(1, 0, dtype=self.dtype, device=self.device)
            return empty, empty
        # Angles are float32 whatever the model's type: the released weights were trained with exactly these.
        exponent = torch.arange(0, llm.head_dim, 2, dtype=torch.int64).float() / llm.head_dim
        angles = torch.outer(torch.arange(llm.max_positions, dtype=torch.float32), 1.0 / (llm.rope_theta**exponent))
        return angles.cos().to(self.device, self.dtype), angles.sin().to(self.device, self.dtype)

    def angles(self, positions: Tensor) -> Angles:
        """Return the rotary angles of positions (T,); computed once per step, used by every layer."""
        rows = positions if self._cosine.shape[1] else torch.zeros_like(positions)
        return Angles(self._cosine[rows].unsqueeze(1), self._sine[rows].unsqueeze(1))

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the residual stream (T, d) of tokens (T,) at positions (T,)."""
        stream = self.weights.embedding[tokens]
        if self.weights.positions is not None:
            stream = stream + self.weights.positions[positions + OPT_POSITION_OFFSET]
        return stream

    def attention_input(self, layer: int, stream: Tensor) -> Tensor:
        """Return the direct input (T, d) of the QKV projection: what the hidden cache stores."""
        weights = self.weights.layers[layer]
        return self._norm(stream, weights.attention_norm, weights.attention_norm_bias)

    def project(self, layer: int, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Return queries (T, h_q, d_h), and keys and values (T, 2, h_kv, d_h), normed and rotated."""
        llm, weights = self.llm, self.weights.layers[layer]
        heads = functional.linear(x, weights.qkv, weights.qkv_bias).view(len(x), -1, llm.head_dim)
        query, key_value = heads[:, : llm.num_heads], heads[:, llm.num_heads :]
        if weights.q_norm is not None:
            query = self._head_norm(query, weights.q_norm)
        self._rotate(query, angles)
        return query, self._finish_keys(weights, key_value, angles)

    def rebuild(self, layer: int, x: Tensor, angles: Angles) -> Tensor:
        """Return keys and values (T, 2, h_kv, d_h) from the hidden cache's attention inputs (T, d)."""
        llm, weights = self.llm, self.weights.layers[layer]
        skip = llm.num_heads * llm.head_dim
        bias = None if weights.qkv_bias is None else weights.qkv_bias[skip:]
        return self._finish_keys(weights, functional.linear(x, weights.qkv[skip:], bias).view(len(x), -1, llm.head_dim), angles)

    def after_attention(self, layer: int, stream: Tensor, attended: Tensor) -> Tensor:
        """Add the output projection of `attended` (T, h_q d_h) and then the feed-forward to the residual stream (T, d)."""
        weights = self.weights.layers[layer]
        stream = stream + self._summed(functional.linear(attended, weights.out, weights.out_bias))
        inner = functional.linear(self._norm(stream, weights.ffn_norm, weights.ffn_norm_bias), weights.up, weights.up_bias)
        if self.llm.gated_ffn:
            gate, up = inner.chunk(2, dim=-1)
            inner = functional.silu(gate) * up
        else:
            inner = functional.relu(inner)
        return stream + self._summed(functional.linear(inner, weights.down, weights.down_bias))

    def _summed(self, partial: Tensor) -> Tensor:
        return partial if self.group is None else self.group.reduce(partial)

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits (T, vocabulary) of rows of the last layer's residual stream."""
        return functional.linear(self._norm(stream, self.weights.final_norm, self.weights.final_norm_bias), self.weights.head)

    def _finish_keys(self, weights: LayerWeights, key_value: Tensor, angles: Angles) -> Tensor:
        kv_heads = self.llm.num_kv_heads
        if weights.k_norm is not None:
            key_value[:, :kv_heads] = self._head_norm(key_value[:, :kv_heads], weights.k_norm)
        self._rotate(key_value[:, :kv_heads], angles)
        return key_value.view(len(key_value), 2, kv_heads, self.llm.head_dim)

    def _head_norm(self, heads: Tensor, scale: Tensor) -> Tensor:
        return functional.rms_norm(heads, (self.llm.head_dim,), scale, self.llm.norm_epsilon)

    def _norm(self, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            return functional.layer_norm(x, (self.llm.hidden_size,), scale, bias, self.llm.norm_epsilon)
        return functional.rms_norm(x, (self.llm.hidden_size,), scale, self.llm.norm_epsilon)

    def _rotate(self, heads: Tensor, angles: Angles) -> None:
        """Rotate heads (T, h, d_h) in place; a head's first half pairs with its second (Hugging Face's layout)."""
        if self.llm.learned_positions:
            return
        first, second = heads.chunk(2, dim=-1)
        turned = first * angles.cosine - second * angles.sine
        second.mul_(angles.cosine).add_(first * angles.sine)
        first.copy_(turned)
