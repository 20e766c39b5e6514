from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from strategies import llms
from transformers_configs import transformers_config

from optsched import catalog
from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.huggingface import read_config

OWN_FIELDS = {"name", "title", "source", "dtype", "kv_dtype", "rope_scaling"}
# A config as the Hub has it (transformers 4 keys), and the catalog's llm of the same model.
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(config: object, **changes: object) -> Path:
        folder = tmp_path / "Qwen3-0.6B"
        folder.mkdir(exist_ok=True)
        path = folder / "config.json"
        data = {**config, **changes} if isinstance(config, dict) else config
        path.write_text(json.dumps(data))
        return path

    return write


def shape(llm: Llm) -> dict[str, object]:
    return llm.model_dump(exclude=OWN_FIELDS)


@pytest.mark.parametrize("name", catalog.llms())
def test_what_transformers_writes_reads_back_as_the_packaged_llm(name: str, write: Write) -> None:
    llm = catalog.llm(name)
    assert shape(read_config(write(transformers_config(llm).to_dict()))) == shape(llm)


@given(llm=llms())
def test_what_transformers_writes_reads_back_as_any_shape(llm: Llm, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_text(json.dumps(transformers_config(llm).to_dict()))
    expected = llm.replace(norm_epsilon=1e-5) if llm.family == "opt" else llm  # OPT's config has no epsilon
    assert shape(read_config(path)) == shape(expected)


def test_a_config_of_the_hub_reads_as_the_packaged_llm(write: Write) -> None:
    llm = read_config(write(QWEN3))
    assert shape(llm) == shape(catalog.llm("qwen3-0.6b"))
    assert (llm.name, llm.dtype, llm.rope_scaling) == ("Qwen3-0.6B", "bf16", None)
    assert str(write(QWEN3)) in llm.source


def test_a_folder_stands_for_its_config(write: Write) -> None:
    path = write(QWEN3)
    assert read_config(path.parent) == read_config(path)
    assert catalog.llm(str(path)) == read_config(path)


def test_a_snapshot_of_the_hub_cache_is_named_after_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN3))
    assert read_config(folder).name == "Qwen3-0.6B"


def test_mistral_is_a_llama_with_a_sliding_window(write: Write) -> None:
    llm = read_config(write(QWEN3, architectures=["MistralForCausalLM"], sliding_window=4096))
    assert (llm.family, llm.sliding_window) == ("llama", 4096)
    assert read_config(write(QWEN3, architectures=["MistralForCausalLM"])).sliding_window is None


def test_a_window_of_qwen3_counts_only_where_it_is_used(write: Write) -> None:
    assert read_config(write(QWEN3, sliding_window=4096)).sliding_window is None
    assert read_config(write(QWEN3, use_sliding_window=True, sliding_window=4096)).sliding_window is None
    assert read_config(write(QWEN3, use_sliding_window=True, sliding_window=4096, max_window_layers=0)).sliding_window == 4096


@pytest.mark.parametrize(
    ("architecture", "changes", "sliding"),
    [
        ("Qwen3ForCausalLM", {"max_window_layers": 14}, 14),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 24}, 24),
        ("MistralForCausalLM", {"layer_types": ["sliding_attention", "full_attention"] * 14}, 14),
        # transformers, Gemma3TextConfig: is_sliding = bool((layer_idx + 1) % sliding_window_pattern)
        ("MistralForCausalLM", {"sliding_window_pattern": 6}, 24),
        ("MistralForCausalLM", {"layer_types": ["full_attention"] * 28}, None),
    ],
)
def test_layers_with_and_without_a_window_are_counted(
    architecture: str, changes: dict[str, object], sliding: int | None, write: Write
) -> None:
    llm = read_config(write(QWEN3, architectures=[architecture], use_sliding_window=True, sliding_window=512, **changes))
    assert (llm.sliding_window, llm.num_sliding_layers) == ((512, sliding) if sliding else (None, None))
    assert (llm.num_windowed_layers, llm.layer_window) == ((sliding, 512) if sliding else (0, None))
    assert llm.runtime_refusal == ("sliding-window attention" if sliding else None)


@pytest.mark.parametrize("scaling", [{"rope_type": "llama3", "factor": 8.0}, {"type": "yarn", "factor": 4.0}])
def test_scaled_rotary_frequencies_are_kept_and_refused_by_the_workers(scaling: dict[str, object], write: Write) -> None:
    llm = read_config(write(QWEN3, rope_scaling=scaling))
    assert llm.rope_scaling == scaling.get("rope_type", scaling.get("type"))
    assert llm.rope_theta == 1e6
    assert llm.runtime_refusal is not None


@pytest.mark.parametrize(
    ("quantisation", "weights"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
    ],
)
def test_quantised_weights_leave_the_caches_as_they_are(quantisation: dict[str, object], weights: str, write: Write) -> None:
    llm = read_config(write(QWEN3, quantization_config=quantisation))
    assert (llm.dtype, llm.cache_dtype) == (weights, "bf16")


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings", "architectures"]
)
def test_a_missing_field_is_named(key: str, write: Write) -> None:
    with pytest.raises(SpecError, match=f"{key}: missing; add it") as caught:
        read_config(write({name: value for name, value in QWEN3.items() if name != key}))
    assert caught.value.field == key


def test_an_unsupported_architecture_lists_the_supported_ones(write: Write) -> None:
    with pytest.raises(
        SpecError, match=r"'GPT2LMHeadModel' is not supported; there are: OPTForCausalLM, .*DeepseekV3ForCausalLM"
    ):
        read_config(write(QWEN3, architectures=["GPT2LMHeadModel"]))
    with pytest.raises(SpecError, match=r"\[\] is not supported"):
        read_config(write(QWEN3, architectures=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu': only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias: True: only False is supported"),
        (
            {"use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types: .*: must name the kind of each of the 28",
        ),
        (
            {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 28},
            "layer_types: 'chunked_attention': only 'full_attention' or 'sliding_attention' is supported",
        ),
        ({"use_sliding_window": True, "sliding_window_pattern": 0}, "sliding_window_pattern: 0: must be at least 1"),
        ({"hidden_size": "1024"}, "hidden_size: '1024': must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True: must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: 'small': must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: 1: must be true or false"),
        ({"rope_scaling": 8.0}, "rope_scaling: 8.0: must be a table"),
        ({"torch_dtype": "int3"}, "dtype: 'int3': must be one of float32"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "method 'bitsandbytes' is not supported"),
        ({"num_key_value_heads": 3}, "num_heads 16 must be a multiple of num_kv_heads 3"),
        ({"num_attention_heads": 0}, "greater than 0"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "q_lora_rank: missing"),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [5], "num_experts": 8, "num_experts_per_tok": 2},
            "mlp_only_layers: .5.: dense layers must be the leading ones",
        ),
        ({"architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 2}, "decoder_sparse_step: 2: only 1 is supported"),
    ],
)
def test_what_an_llm_cannot_express_is_refused_in_one_line(changes: dict[str, object], message: str, write: Write) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        read_config(write(QWEN3, **changes))
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before: False"),
        ({"word_embed_proj_dim": 32}, "word_embed_proj_dim: 32: only 64"),
    ],
)
def test_the_odd_one_of_the_opt_family_is_refused(change: dict[str, object], message: str, write: Write) -> None:
    with pytest.raises(SpecError, match=message):
        read_config(write(transformers_config(catalog.llm("tiny-opt")).to_dict(), **change))


def test_a_config_that_is_not_there_or_not_json_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_config(tmp_path / "absent" / "config.json")
    with pytest.raises(SpecError, match=r"config\.json: no such file"):
        read_config(tmp_path)
    with pytest.raises(SpecError, match="expected an object of settings, got list"):
        read_config(write([1, 2]))
    (tmp_path / "config.json").write_text('{"hidden_size": 10')
    with pytest.raises(SpecError, match="is the file truncated"):
        read_config(tmp_path)
