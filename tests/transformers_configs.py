"""The transformers configuration of an llm: the other side of every comparison with that library."""

from __future__ import annotations

from transformers import (
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from optsched.domain.llm import Llm

ARCHITECTURES = {
    "opt": "OPTForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def transformers_config(llm: Llm) -> PretrainedConfig:
    """Return what transformers calls the same shape."""
    shared = {
        "architectures": [ARCHITECTURES[llm.family]],
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.hidden_size,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "max_position_embeddings": llm.max_positions,
        "tie_word_embeddings": llm.tied_embeddings,
        "dtype": _DTYPES.get(llm.dtype, "bfloat16"),
        "pad_token_id": None,
    }
    if llm.family == "opt":
        return OPTConfig(ffn_dim=llm.ffn_size, word_embed_proj_dim=llm.hidden_size, **shared)
    rotary = {
        **shared,
        "num_key_value_heads": llm.num_kv_heads,
        "intermediate_size": llm.ffn_size,
        "rms_norm_eps": llm.norm_epsilon,
        "rope_theta": llm.rope_theta,
    }
    if llm.family == "llama":
        return LlamaConfig(head_dim=llm.head_dim, **rotary)
    if llm.family == "qwen3":
        return Qwen3Config(head_dim=llm.head_dim, **rotary)
    moe = llm.moe
    if moe is None:
        raise AssertionError(llm.family)
    rotary["num_experts_per_tok"] = moe.experts_per_token
    if llm.family == "mixtral":
        return MixtralConfig(
            num_local_experts=moe.num_experts, head_dim=llm.head_dim, **{**rotary, "intermediate_size": moe.expert_size}
        )
    rotary["moe_intermediate_size"] = moe.expert_size
    if llm.family == "qwen3_moe":
        return Qwen3MoeConfig(num_experts=moe.num_experts, head_dim=llm.head_dim, **rotary)
    mla = llm.mla
    if mla is None:
        raise AssertionError(llm.family)
    return DeepseekV3Config(
        n_routed_experts=moe.num_experts,
        n_shared_experts=moe.num_shared,
        first_k_dense_replace=moe.num_dense_layers,
        n_group=1,
        topk_group=1,
        q_lora_rank=mla.q_rank,
        kv_lora_rank=mla.kv_rank,
        qk_rope_head_dim=mla.rope_dim,
        qk_nope_head_dim=mla.nope_dim,
        v_head_dim=mla.v_dim,
        **rotary,
    )
