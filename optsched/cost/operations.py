"""Every operation of a step with its shape on each GPU of a stage, and how often the step repeats it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from optsched.cost import collectives, decode_attention, elementwise, experts, gemm, prefill_attention
from optsched.cost.precision import Scalar
from optsched.cost.roofline import Card
from optsched.cost.tier import TierParameters

SLOW_ONSET = 24.0  # how sharply messages leave the fast path with their size


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


class PrefillAttention(Operation):
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

    def compute_j(self, tier: TierParameters) -> Scalar:
        """Return the dynamic energy of all FLOPs at the full clock, on one GPU."""
        return self.flops * tier.attention_j_per_flop


class DecodeAttention(Operation):
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

    def compute_j(self, tier: TierParameters) -> Scalar:
        """Return the dynamic energy of all FLOPs at the full clock, on one GPU."""
        return self.flops * tier.attention_j_per_flop


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


class Communication(eqx.Module):
    """A collective of some GPUs on `num_bytes`; `count` times per step, one after another.

    For ``hand_over``, `gpus` is the share of the hand-overs that cross nodes.
    """

    count: Scalar
    num_bytes: Scalar
    gpus: Scalar
    kind: Literal["all_reduce", "all_gather", "all_to_all", "hand_over"] = eqx.field(static=True)

    def seconds(self, tier: TierParameters) -> Scalar:
        """Return the time of all of them in seconds."""
        times = {
            "all_reduce": collectives.all_reduce_s,
            "all_gather": collectives.all_gather_s,
            "all_to_all": collectives.all_to_all_s,
            "hand_over": collectives.hand_over_s,
        }
        once_s = times[self.kind](tier.collectives, tier.fabric, self.num_bytes, self.gpus) + tier.message_overhead_s
        return self.count * (once_s + self._slow_s(tier) if self.kind == "all_reduce" else once_s)

    def _slow_s(self, tier: TierParameters) -> Scalar:
        """Return what the part of an all-reduce that the engine sends off the fast path takes more: none between two GPUs."""
        large = (self.num_bytes / tier.slow_message_bytes) ** SLOW_ONSET
        hops = jnp.maximum(self.gpus - 2.0, 0.0) / self.gpus
        return hops * tier.slow_message_s_per_byte * self.num_bytes * large / (1.0 + large)

    @property
    def bytes(self) -> Scalar:
        """Bytes that each GPU sends in all of them."""
        if self.kind == "all_reduce":
            return self.count * collectives.all_reduce_bytes(self.num_bytes, self.gpus)
        if self.kind == "hand_over":
            return self.count * self.num_bytes
        return self.count * collectives.all_gather_bytes(self.num_bytes, self.gpus)


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
