"""What fits: weights and reserve out of a replica's memory, and the KV cache tokens that remain."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.cost.shape import Layout, kv_share
from optsched.domain.hardware import Tier
from optsched.domain.llm import Llm
from optsched.errors import InfeasibleError


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a replica, all its GPUs together.

    Attributes
    ----------
    weights_bytes
        All weights.
    reserve_bytes
        Neither weights nor cache: context, graphs, activations of the largest step.
    kv_bytes_per_token, hidden_bytes_per_token
        Cache per token, replicas of KV heads on several GPUs included; the hidden cache is split over the GPUs.
    kv_token_budget
        KV cache tokens that fit, whole blocks, those beyond sliding windows included (`memory`).
    """

    weights_bytes: float
    reserve_bytes: float
    kv_bytes_per_token: float
    hidden_bytes_per_token: float
    kv_token_budget: int


def kv_bytes_per_token(llm: Llm, tp: int = 1) -> float:
    """Return the bytes of KV cache per token on all `tp` GPUs; above `tp = num_kv_heads` (MLA: 1) heads are replicated."""
    return llm.kv_bytes_per_token * kv_share(llm, tp) * tp


def held_share(llm: Llm, context_tokens: int, block_tokens: int = 16) -> float:
    """Return the share of a sequence's cache that is held if layers with a sliding window drop what lies before it.

    Parameters
    ----------
    llm
        For its window, and the layers that have it.
    context_tokens
        Of the sequence, at least 1.
    block_tokens
        A window keeps whole blocks: up to one more than it needs.

    Notes
    -----
    Engines that keep one table of blocks for all layers hold everything, engines with tables per kind of layer this share.
    """
    if llm.sliding_window is None:
        return 1.0
    kept = min(context_tokens, llm.sliding_window + block_tokens) / context_tokens
    sliding = (llm.num_sliding_layers or llm.num_layers) / llm.num_layers
    return 1.0 - sliding + sliding * kept


def memory(
    llm: Llm, tier: Tier, *, tp: int = 1, pp: int = 1, block_tokens: int = 16, context_tokens: int | None = None
) -> Memory:
    """Divide a replica's memory.

    Parameters
    ----------
    llm, tier
        What is served, and where.
    tp, pp
        GPUs per layer, and pipeline stages.
    block_tokens
        Tokens of a cache block.
    context_tokens
        Of each sequence: layers with a sliding window then keep no more than it, and more sequences fit. None: every layer
        keeps every token.

    Raises
    ------
    InfeasibleError
        If not even one block remains.
    SpecError
        If the llm cannot be split so.

    Notes
    -----
    ``tokens = (memory * utilisation * tp * pp - weights - reserve * tp * pp) / KV bytes per token``, down to whole blocks. The
    reserve of a gpu is read from an engine's reported budget, so it covers the activations of that engine's largest step.
    """
    Layout(tp, pp).check(llm)
    gpus, card = tp * pp, tier.gpu
    usable = card.datasheet.memory_bytes * card.memory_utilisation * gpus
    reserve = card.efficiency.reserve_bytes * gpus
    per_token = kv_bytes_per_token(llm, tp)
    held = per_token * (1.0 if context_tokens is None else held_share(llm, context_tokens, block_tokens))
    blocks = int((usable - llm.weights_bytes - reserve) // (held * block_tokens))
    if blocks < 1:
        needed = llm.weights_bytes + reserve + per_token * block_tokens
        raise InfeasibleError(
            f"{llm.name} needs {needed / 1e9:.4g} GB for weights, reserve and one cache block; {gpus} x {tier.name} "
            f"{'has' if gpus == 1 else 'have'} {usable / 1e9:.4g} GB at {card.memory_utilisation:.0%} utilisation. "
            "Use a larger gpu, more GPUs (tp, pp), or narrower weights."
        )
    return Memory(
        weights_bytes=llm.weights_bytes,
        reserve_bytes=reserve,
        kv_bytes_per_token=per_token,
        hidden_bytes_per_token=llm.hidden_bytes_per_token,
        kv_token_budget=blocks * block_tokens,
    )


def kv_token_budget(llm: Llm, tier: Tier, *, tp: int = 1, pp: int = 1, block_tokens: int = 16) -> int:
    """Return the KV cache tokens that a replica holds, whole blocks.

    Raises
    ------
    InfeasibleError
        If not even one block remains.
    """
    return memory(llm, tier, tp=tp, pp=pp, block_tokens=block_tokens).kv_token_budget
