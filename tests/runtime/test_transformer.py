"""Our forward pass against transformers' with the same random weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from small_llms import LLAMA, LLAMA_GQA, OPT, QWEN3, QWEN3_WIDE, small_llm

from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.runtime.model.huggingface import load_folder, load_state_dict_from_hf
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import random_weights
from optsched.runtime.step import forward


def reference_model(llm: Llm) -> torch.nn.Module:
    """Build transformers' model of an llm with random weights, biases and norms included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        if llm.family == "opt":
            config = transformers.OPTConfig(
                vocab_size=llm.vocab_size, hidden_size=llm.hidden_size, num_hidden_layers=llm.num_layers, ffn_dim=llm.ffn_size,
                max_position_embeddings=llm.max_positions, num_attention_heads=llm.num_heads, word_embed_proj_dim=llm.hidden_size,
                dropout=0.0, tie_word_embeddings=llm.tied_embeddings,
            )  # fmt: skip
            model = transformers.OPTForCausalLM(config)
        else:
            kind = transformers.LlamaConfig if llm.family == "llama" else transformers.Qwen3Config
            config = kind(
                vocab_size=llm.vocab_size, hidden_size=llm.hidden_size, intermediate_size=llm.ffn_size,
                num_hidden_layers=llm.num_layers, num_attention_heads=llm.num_heads, num_key_value_heads=llm.num_kv_heads,
                head_dim=llm.head_dim, max_position_embeddings=llm.max_positions, rms_norm_eps=llm.norm_epsilon,
                tie_word_embeddings=llm.tied_embeddings, rope_parameters={"rope_type": "default", "rope_theta": llm.rope_theta},
                attention_bias=False,
            )  # fmt: skip
            model = (transformers.LlamaForCausalLM if llm.family == "llama" else transformers.Qwen3ForCausalLM)(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model in float64; transformers' RMS norms compute in float32 whatever comes in, so torch's take their place."""
    model = model.double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


@pytest.mark.parametrize("llm", [OPT, LLAMA, LLAMA_GQA, QWEN3, QWEN3_WIDE], ids=lambda llm: f"{llm.name}-{llm.hidden_ratio:g}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"])
def test_the_forward_pass_equals_that_of_transformers(llm: Llm, dtype: torch.dtype, tolerance: float) -> None:
    reference = reference_model(llm)
    model = Transformer(llm, load_state_dict_from_hf(llm, reference.state_dict(), dtype))
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, llm.vocab_size, 75))
    reference = in_float64(reference) if dtype == torch.float64 else reference
    with torch.inference_mode():
        expected = reference(input_ids=tokens[None], attention_mask=torch.ones(1, 75, dtype=torch.long)).logits[0]
    ours = forward(model, tokens)
    assert expected.abs().max() > 0.5
    assert (ours - expected).abs().max() < tolerance


def test_a_safetensors_folder_gives_the_weights_that_were_saved(tmp_path) -> None:
    reference = reference_model(QWEN3)
    reference.save_pretrained(tmp_path)
    weights = load_folder(QWEN3, tmp_path)
    assert torch.equal(weights.embedding, reference.get_input_embeddings().weight)
    assert weights.layers[1].qkv.shape == (4 * 16 + 2 * 2 * 16, 32)


def test_weights_of_another_llm_are_refused_by_tensor_name(tmp_path) -> None:
    reference_model(QWEN3).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r"'model.layers.0.self_attn.q_proj.weight' has shape \(64, 32\)"):
        load_folder(QWEN3.replace(head_dim=8), tmp_path)
    with pytest.raises(SpecError, match=r"no tensor 'model.decoder.*another family"):
        load_folder(OPT, tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    with pytest.raises(SpecError, match=r"no \*.safetensors files there; give the folder"):
        load_folder(QWEN3, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(SpecError, match="not a readable safetensors file"):
        load_folder(QWEN3, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"family": "mixtral", "moe": {"num_experts": 4, "experts_per_token": 2, "expert_size": 16}},
            "family mixtral; the workers run opt",
        ),
        ({"sliding_window": 128}, "sliding-window attention. Simulate"),
        ({"rope_scaling": "llama3"}, "llama3 scaling of rotary frequencies"),
        ({"dtype": "fp8"}, "fp8 weights; the workers run fp32"),
        ({"kv_dtype": "fp8"}, "with fp32 weights and fp8 caches"),
        ({"head_dim": 7}, "an even head_dim"),
    ],
)
def test_an_llm_that_cannot_run_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        random_weights(small_llm(**changes), seed=0)


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (random_weights(QWEN3, seed) for seed in (1, 1, 2))
    assert torch.equal(one.layers[0].qkv, same.layers[0].qkv)
    assert not torch.equal(one.layers[0].qkv, other.layers[0].qkv)
    assert 0.015 < one.layers[0].up.std() < 0.025
    tied = random_weights(OPT, 1)
    assert tied.head is tied.embedding
    assert tied.positions is not None
    assert tied.positions.shape == (OPT.max_positions + 2, OPT.hidden_size)
