"""Every operation of a step with its shape on each GPU of a stage, and how often the step repeats it."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp

from optsched.cost import decode_attention, elementwise, experts, gemm, prefill_attention
from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card
from optsched.cost.tier import TierParameters


class Operation(eqx.Module):
    """One kind of kernel; `count` times per step, each time with the same shape.

    `seconds`, `flops` and `moved_bytes` are those of all `count` times on each GPU.
    """

    count: Scalar

    @abstractmethod
    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""

    @property
    @abstractmethod
    def once_flops(self) -> Scalar:
        """FLOPs of one of them."""

    @property
    @abstractmethod
    def once_bytes(self) -> Scalar:
        """Bytes of device memory that one of them reads and writes."""

    def seconds(self, tier: TierParameters) -> Scalar:
        """Return the time of all of them in seconds."""
        return self.count * self.once_s(tier)

    @property
    def flops(self) -> Scalar:
        """FLOPs of all of them."""
        return self.count * self.once_flops

    @property
    def bytes(self) -> Scalar:
        """Bytes that all of them move."""
        return self.count * self.once_bytes

    def compute_j(self, tier: TierParameters) -> Scalar:
        """Return the dynamic energy of all FLOPs at the full clock, on one GPU."""
        return self.flops * tier.gemm_j_per_flop

    def memory_j(self, tier: TierParameters) -> Scalar:
        """Return the dynamic energy of all bytes at the full clock, on one GPU."""
        return self.bytes * tier.memory_j_per_byte


class Gemm(Operation):
    """A matrix product of weights: (rows, inner) by (inner, outer).

    `wide` is 1 where the weights have the data type of the activations though the llm's others are narrower, else 0.
    """

    rows: Scalar
    inner: Scalar
    outer: Scalar
    weight_bytes: Scalar
    activation_bytes: Scalar
    wide: Scalar

    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""
        card = Card(tier.flops_per_s * tier.wide_rate**self.wide, tier.memory_bytes_per_s, tier.card.clock)
        return gemm.gemm_s(tier.gemm, card, self.rows, self.inner, self.outer, self.weight_bytes, self.activation_bytes)

    @property
    def once_flops(self) -> Scalar:
        """FLOPs of one of them."""
        return gemm.gemm_flops(self.rows, self.inner, self.outer)

    @property
    def once_bytes(self) -> Scalar:
        """Bytes that one of them moves."""
        return gemm.gemm_bytes(self.rows, self.inner, self.outer, self.weight_bytes, self.activation_bytes)


class Attention(Operation):
    """Attention of either kind: its FLOPs have an energy of their own."""

    def compute_j(self, tier: TierParameters) -> Scalar:
        """Return the dynamic energy of all FLOPs at the full clock, on one GPU."""
        return self.flops * tier.attention_j_per_flop


class PrefillAttention(Attention):
    """Attention of the sequences in prefill; totals over them, and heads of this GPU."""

    tokens: Scalar
    context_tokens: Scalar
    pairs: Scalar
    sequences: Scalar
    heads: Scalar
    kv_heads: Scalar
    key_dim: Scalar
    value_dim: Scalar
    cache_width: Scalar
    cache_bytes: Scalar
    activation_bytes: Scalar

    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""
        return prefill_attention.prefill_attention_s(
            tier.prefill_attention, tier.wide_card, self.tokens, self.context_tokens, self.pairs, self.sequences, self.heads,
            self.kv_heads, self.key_dim, self.value_dim, self.cache_width, self.cache_bytes, self.activation_bytes,
        )  # fmt: skip

    @property
    def once_flops(self) -> Scalar:
        """FLOPs of one of them."""
        return prefill_attention.prefill_attention_flops(self.pairs, self.heads, self.key_dim, self.value_dim)

    @property
    def once_bytes(self) -> Scalar:
        """Bytes that one of them moves."""
        return prefill_attention.prefill_attention_bytes(
            self.tokens, self.context_tokens, self.heads, self.key_dim, self.value_dim, self.cache_width, self.cache_bytes,
            self.activation_bytes,
        )  # fmt: skip


class DecodeAttention(Attention):
    """Attention of the decoding sequences; totals over them, and heads of this GPU."""

    sequences: Scalar
    cached_tokens: Scalar
    heads: Scalar
    kv_heads: Scalar
    key_dim: Scalar
    value_dim: Scalar
    cache_width: Scalar
    cache_bytes: Scalar
    activation_bytes: Scalar
    window: Scalar

    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""
        return decode_attention.decode_attention_s(
            tier.decode_attention, tier.wide_card, self.sequences, self.cached_tokens, self.heads, self.kv_heads,
            self.key_dim, self.value_dim, self.cache_width, self.cache_bytes, self.activation_bytes,
            self.window,
        )  # fmt: skip

    @property
    def once_flops(self) -> Scalar:
        """FLOPs of one of them."""
        return decode_attention.decode_attention_flops(self.cached_tokens, self.heads, self.key_dim, self.value_dim)

    @property
    def once_bytes(self) -> Scalar:
        """Bytes that one of them moves."""
        return decode_attention.decode_attention_bytes(
            self.sequences, self.cached_tokens, self.heads, self.key_dim, self.value_dim, self.cache_width, self.cache_bytes,
            self.activation_bytes,
        )  # fmt: skip


class Experts(Operation):
    """The routed experts of one layer; time is that of the busiest GPU, work that of the mean one."""

    tokens: Scalar
    hidden_size: Scalar
    expert_size: Scalar
    num_experts: Scalar
    experts_per_token: Scalar
    groups: Scalar
    load_cv: Scalar
    matrices: Scalar
    weight_bytes: Scalar
    activation_bytes: Scalar

    @property
    def rows(self) -> Scalar:
        """Pairs of a token and an expert on the mean GPU."""
        return self.tokens * self.experts_per_token / self.groups

    @property
    def touched(self) -> Scalar:
        """Experts of one GPU that are visited."""
        return experts.touched_experts(self.tokens, self.num_experts, self.experts_per_token, self.groups, self.load_cv)

    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""
        busiest = self.rows * experts.busiest_load(self.num_experts, self.groups, self.load_cv)
        return experts.experts_s(
            tier.experts, tier.card, self.tokens, busiest, self.touched, busiest, self.hidden_size, self.expert_size,
            self.matrices, self.weight_bytes, self.activation_bytes,
        )  # fmt: skip

    @property
    def once_flops(self) -> Scalar:
        """FLOPs of one of them."""
        return experts.experts_flops(self.rows, self.hidden_size, self.expert_size, self.matrices)

    @property
    def once_bytes(self) -> Scalar:
        """Bytes that one of them moves."""
        return experts.experts_bytes(
            self.rows, self.touched, self.hidden_size, self.expert_size, self.matrices, self.weight_bytes,
            self.activation_bytes,
        )  # fmt: skip


class Elementwise(Operation):
    """Kernels that pass over memory."""

    kernels: Scalar
    moved_bytes: Scalar

    def once_s(self, tier: TierParameters) -> Scalar:
        """Return the time of one of them in seconds."""
        return elementwise.elementwise_s(tier.elementwise, tier.card, self.kernels, self.moved_bytes)

    @property
    def once_flops(self) -> Scalar:
        """FLOPs of one of them: none that count."""
        return jnp.zeros_like(self.moved_bytes)

    @property
    def once_bytes(self) -> Scalar:
        """Bytes that one of them moves."""
        return self.moved_bytes
