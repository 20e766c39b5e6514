"""A GGUF file of a tiny Llama with random weights and a tokenizer; import as ``from tiny_gguf import ...``."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from small_llms import small_llm
from torch import Tensor

from optsched.domain.llm import Llm

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_letters() -> list[str]:
    """Return the letters that stand for the 256 bytes in byte-level BPE (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


LLM: Llm = small_llm("llama", vocab_size=3 + 256 + 2, max_positions=512)


def random_state(llm: Llm = LLM) -> dict[str, Tensor]:
    """Return random tensors under transformers' names."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    d, q, kv, f = llm.hidden_size, llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim, llm.ffn_size
    state = {"model.embed_tokens.weight": drawn(llm.vocab_size, d), "lm_head.weight": drawn(llm.vocab_size, d)}
    state["model.norm.weight"] = drawn(d)
    for layer in range(llm.num_layers):
        shapes = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }  # fmt: skip
        state |= {f"model.layers.{layer}.{name}.weight": drawn(*shape) for name, shape in shapes.items()}
    return state


def write_gguf(
    path: Path, llm: Llm = LLM, quantise: bool = False, rule: str = "smollm", template: bool = True
) -> dict[str, Tensor]:
    """Write a file as llama.cpp's converter does, and return the tensors as transformers has them."""
    state = random_state(llm)
    writer = gguf.GGUFWriter(path, "llama")
    letters = byte_letters()
    tokens = [*CONTROL, *letters, "he", "hel"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 258)
    writer.add_token_merges(["h e", "he l"])
    writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, llm.num_layers).mapping
    for name, tensor in state.items():
        stem = name.removesuffix(".weight")
        data = tensor.numpy()
        heads = {"q_proj": llm.num_heads, "k_proj": llm.num_kv_heads}.get(stem.rpartition(".")[2])
        if heads:  # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
            rows, columns = data.shape
            data = data.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantise and data.ndim == 2 and data.shape[1] % 32 == 0 else None
        stored = gguf.quantize(np.ascontiguousarray(data), kind) if kind else np.ascontiguousarray(data)
        writer.add_tensor(f"{names[stem][1]}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state
