"""Llms small enough for unit tests, one per family and head layout; import as ``from small_llms import ...``."""

from __future__ import annotations

from optsched.domain.llm import Family, Llm


def small_llm(family: Family = "llama", **changes: object) -> Llm:
    """Return a small llm of a family, with some fields of its shape changed."""
    shape: dict[str, object] = {
        "name": f"small-{family}",
        "title": "for tests",
        "family": family,
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_size": 48,
        "vocab_size": 101,
        "max_positions": 512,
        "tied_embeddings": family == "opt",
        "rope_theta": None if family == "opt" else 1e4,
        "norm_epsilon": 1e-5 if family == "opt" else 1e-6,
        "dtype": "fp32",
        "source": "made up",
    }
    return Llm.model_validate({**shape, **changes})


# Hidden cache over KV cache: 1/2 (MHA), 1/2 (GQA, but wide heads), 1/4 (wide heads), 2/3 and 1 (no gain).
OPT = small_llm("opt", num_kv_heads=4)
LLAMA = small_llm("llama", num_kv_heads=4)
LLAMA_GQA = small_llm("llama", num_kv_heads=2)
QWEN3 = small_llm("qwen3", num_kv_heads=2, head_dim=16)
QWEN3_WIDE = small_llm("qwen3", num_kv_heads=4, head_dim=16)
QWEN3_ODD = small_llm("qwen3", num_kv_heads=2, head_dim=12)
ALL = (OPT, LLAMA, LLAMA_GQA, QWEN3, QWEN3_WIDE, QWEN3_ODD)
HYBRID = (OPT, LLAMA, QWEN3, QWEN3_WIDE, QWEN3_ODD)
