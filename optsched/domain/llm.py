"""A language model's shape: what its parameters, caches and operations cost follows from it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.frozen import Frozen

Family = Literal["opt", "llama", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3"]
RUNNABLE_FAMILIES: tuple[Family, ...] = ("opt", "llama", "qwen3")
RUNNABLE_DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")

# Trained with an auxiliary loss, the busiest of 64 experts has 0.52 to 0.72 more than the mean, with biases 0.04 (Wang et al.,
# arXiv 2408.15664, table 2, MaxVio of the whole set); the largest of 64 normal shares lies 2.4 deviations above their mean.
LOAD_CV = 0.25


class Moe(Frozen):
    """Routed experts of the feed-forward layers.

    Attributes
    ----------
    num_experts, experts_per_token
        Routed experts of a layer, and how many of them each token visits.
    expert_size
        Intermediate width of one expert.
    num_shared
        Experts that every token visits, of the same width.
    num_dense_layers
        Leading layers with a dense feed-forward of width `Llm.ffn_size`.
    router_bias
        Whether the router adds one learned bias per expert.
    load_cv
        How unevenly a layer's tokens choose experts: standard deviation of the experts' shares over their mean; 0: evenly.
    """

    num_experts: int = Field(gt=0)
    experts_per_token: int = Field(gt=0)
    expert_size: int = Field(gt=0)
    num_shared: int = Field(default=0, ge=0)
    num_dense_layers: int = Field(default=0, ge=0)
    router_bias: bool = False
    load_cv: float = Field(default=LOAD_CV, ge=0)

    @model_validator(mode="after")
    def _experts_suffice(self) -> Self:
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}")
        return self


class Mla(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 §2.1): K and V are rebuilt from a latent vector."""

    q_rank: int = Field(gt=0)
    kv_rank: int = Field(gt=0)
    rope_dim: int = Field(gt=0)
    nope_dim: int = Field(gt=0)
    v_dim: int = Field(gt=0)


class Llm(Frozen):
    """The shape of a decoder-only transformer.

    Attributes
    ----------
    hidden_size
        d, width of the residual stream.
    num_heads, num_kv_heads, head_dim
        Attention heads, heads of the KV cache, and width of one head (``num_heads * head_dim`` may differ from d).
    ffn_size
        Intermediate width of the dense feed-forward.
    sliding_window, num_sliding_layers
        Tokens a layer attends back to, if limited, and how many layers are (None: all); the others see everything.
    rope_scaling
        How rotary frequencies are scaled for long contexts (``llama3``, ``yarn``, ...), if they are; costs do not depend on it.
    dtype, kv_dtype
        Data types of the weights and of the caches (None: as the weights).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$")
    title: str
    family: Family
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    ffn_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_positions: int = Field(gt=0)
    tied_embeddings: bool = False
    rope_theta: float | None = Field(default=None, gt=0)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    sliding_window: int | None = Field(default=None, gt=0)
    num_sliding_layers: int | None = Field(default=None, gt=0)
    rope_scaling: str | None = None
    moe: Moe | None = None
    mla: Mla | None = None
    dtype: Dtype = "bf16"
    kv_dtype: Dtype | None = None
    source: str

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if (self.moe is not None) != (self.family in ("mixtral", "qwen3_moe", "deepseek_v3")):
            raise ValueError(f"family {self.family} and the [moe] table contradict each other")
        if (self.mla is not None) != (self.family == "deepseek_v3"):
            raise ValueError(f"family {self.family} and the [mla] table contradict each other")
        if self.moe is not None and self.moe.num_dense_layers > self.num_layers:
            raise ValueError(f"num_dense_layers {self.moe.num_dense_layers} exceeds num_layers {self.num_layers}")
        return self

    @model_validator(mode="after")
    def _window_has_layers(self) -> Self:
        if self.num_sliding_layers is not None:
            if self.sliding_window is None:
                raise ValueError(f"num_sliding_layers {self.num_sliding_layers} needs a sliding_window")
            if self.num_sliding_layers > self.num_layers:
                raise ValueError(f"num_sliding_layers {self.num_sliding_layers} exceeds num_layers {self.num_layers}")
        return self

    @property
    def num_windowed_layers(self) -> int:
        """Layers with a sliding window beside others without; 0 where all layers are alike."""
        return 0 if self.num_sliding_layers in (None, self.num_layers) else self.num_sliding_layers or 0

    @property
    def common_window(self) -> int | None:
        """The sliding window that every layer has; None where any layer sees everything."""
        return None if self.num_windowed_layers else self.sliding_window

    @property
    def layer_window(self) -> int | None:
        """The sliding window of some layers, where others see everything; None where all layers are alike."""
        return self.sliding_window if self.num_windowed_layers else None

    @property
    def runtime_refusal(self) -> str | None:
        """Why the torch workers cannot run this llm, in a few words; None: they can."""
        if self.family not in RUNNABLE_FAMILIES:
            return f"family {self.family}; the workers run {', '.join(RUNNABLE_FAMILIES)}"
        if self.sliding_window is not None:
            return "sliding-window attention"
        if self.rope_scaling is not None:
            return f"{self.rope_scaling} scaling of rotary frequencies"
        if self.dtype not in RUNNABLE_DTYPES:
            return f"{self.dtype} weights; the workers run {', '.join(RUNNABLE_DTYPES)}"
        return None

    @property
    def gated_ffn(self) -> bool:
        """Whether the feed-forward has a gate (three matrices) or not (two)."""
        return self.family != "opt"

    @property
    def biases(self) -> bool:
        """Whether the linear layers carry biases."""
        return self.family == "opt"

    @property
    def learned_positions(self) -> bool:
        """Whether positions are a learned table (OPT) and not rotary."""
        return self.family == "opt"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys pass an RMSNorm per head."""
        return self.family in ("qwen3", "qwen3_moe")

    def with_weights(self, dtype: Dtype | None) -> Llm:
        """Return the llm with its weights in another data type (None: its own), and the cache as it is."""
        return self if dtype in (None, self.dtype) else self.replace(dtype=dtype, kv_dtype=self.cache_dtype)

    @property
    def cache_dtype(self) -> Dtype:
        """The data type of the caches."""
        return self.kv_dtype or self.dtype

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention, norms of queries, keys and latents included."""
        d, dh = self.hidden_size, self.head_dim
        if self.mla is not None:
            m, h = self.mla, self.num_heads
            query = d * m.q_rank + m.q_rank + m.q_rank * h * (m.nope_dim + m.rope_dim)
            key_value = d * (m.kv_rank + m.rope_dim) + m.kv_rank + m.kv_rank * h * (m.nope_dim + m.v_dim)
            return query + key_value + h * m.v_dim * d
        q, kv = self.num_heads * dh, self.num_kv_heads * dh
        weights = d * q + 2 * d * kv + q * d
        biases = q + 2 * kv + d if self.biases else 0
        return weights + biases + (2 * dh if self.qk_norm else 0)

    def _ffn_params(self, width: int) -> int:
        matrices = 3 if self.gated_ffn else 2
        return matrices * self.hidden_size * width + (width + self.hidden_size if self.biases else 0)

    @property
    def dense_ffn_params(self) -> int:
        """Parameters of one dense feed-forward."""
        return self._ffn_params(self.ffn_size)

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert; 0 without experts."""
        return self._ffn_params(self.moe.expert_size) if self.moe else 0

    @property
    def router_params(self) -> int:
        """Parameters of one layer's router."""
        return self.moe.num_experts * (self.hidden_size + int(self.moe.router_bias)) if self.moe else 0

    @property
    def num_moe_layers(self) -> int:
        """Layers whose feed-forward is routed."""
        return self.num_layers - self.moe.num_dense_layers if self.moe else 0

    @property
    def embedding_params(self) -> int:
        """Parameters of token and position embeddings and of an untied LM head."""
        tables = 1 if self.tied_embeddings else 2
        # OPT's learned position table starts at index 2 (transformers, OPTLearnedPositionalEmbedding).
        positions = (self.max_positions + 2) * self.hidden_size if self.learned_positions else 0
        return tables * self.vocab_size * self.hidden_size + positions

    @property
    def norm_params(self) -> int:
        """Parameters of all layer norms outside the attention."""
        return (2 * self.num_layers + 1) * self.hidden_size * (2 if self.biases else 1)

    def _total(self, experts: int) -> int:
        shared = self.moe.num_shared if self.moe else 0
        dense = (self.num_layers - self.num_moe_layers) * self.dense_ffn_params
        routed = self.num_moe_layers * (self.router_params + (experts + shared) * self.expert_params)
        return self.embedding_params + self.norm_params + self.num_layers * self.attention_params + dense + routed

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self._total(self.moe.num_experts if self.moe else 0)

    @property
    def num_active_params(self) -> int:
        """Parameters that one token visits."""
        return self._total(self.moe.experts_per_token if self.moe else 0)

    @property
    def wide_params(self) -> int:
        """Parameters that checkpoints of 8-bit and 4-bit llms keep in 16 bits: embeddings, LM head, norms and routers."""
        return self.embedding_params + self.norm_params + self.num_moe_layers * self.router_params

    @property
    def weights_bytes(self) -> float:
        """Bytes of all weights: at `dtype`, but `wide_params` at no less than 16 bits."""
        narrow = DTYPE_BYTES[self.dtype]
        return (self.num_params - self.wide_params) * narrow + self.wide_params * max(narrow, 2.0)

    @property
    def kv_width(self) -> int:
        """Cached elements per token and layer: K and V, or the latent vector of MLA."""
        return self.mla.kv_rank + self.mla.rope_dim if self.mla else 2 * self.num_kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache per token, all layers."""
        return self.num_layers * self.kv_width * DTYPE_BYTES[self.cache_dtype]

    @property
    def hidden_bytes_per_token(self) -> float:
        """Bytes of hidden cache (the attention input) per token, all layers."""
        return self.num_layers * self.hidden_size * DTYPE_BYTES[self.cache_dtype]

    @property
    def hidden_ratio(self) -> float:
        """Hidden cache size over KV cache size, ``d / (2 n_kv d_h)`` (MLA: d / latent width); hidden pays only below 1."""
        return self.hidden_size / self.kv_width
