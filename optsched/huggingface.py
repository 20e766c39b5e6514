"""Read an llm's shape from a Hugging Face ``config.json``; what the shape cannot express is refused, never guessed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from optsched.domain.dtypes import Dtype
from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.files import read_json, validate

Config = dict[str, object]
_DTYPES: dict[str, Dtype] = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}
_MISSING = object()


class _Reader:
    """Typed look-ups in one config; every failure names the file and the key."""

    def __init__(self, config: Config, path: Path) -> None:
        self.config, self.path = config, path

    def error(self, key: str, reason: str) -> SpecError:
        return SpecError(reason, file=self.path, field=key)

    def _get(self, keys: tuple[str, ...], default: object) -> object:
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), _MISSING)
        if found is not _MISSING:
            return found
        if default is _MISSING:
            raise self.error(keys[0], "missing; add it, or use the config.json that the model's publisher gives")
        return default

    def integer(self, *keys: str, default: object = _MISSING) -> int:
        value = self._get(keys, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(keys[0], f"{value!r}: must be a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get((key,), default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"{value!r}: must be a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get((key,), default)
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r}: must be true or false")
        return value

    def table(self, key: str) -> Config:
        value = self._get((key,), {})
        if not isinstance(value, dict):
            raise self.error(key, f"{value!r}: must be a table")
        return value

    def require(self, key: str, default: object, *allowed: object) -> None:
        """Refuse a variant of the architecture whose shape an Llm cannot express."""
        value = self._get((key,), default)
        if value not in allowed:
            raise self.error(key, f"{value!r}: only {' or '.join(repr(choice) for choice in allowed)} is supported")


def _attention(reader: _Reader, head_dim: int | None = None) -> Config:
    """Return the fields that every rotary family has; `head_dim`: its default, else hidden_size over heads."""
    hidden_size, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    rope = reader.table("rope_parameters") or reader.table("rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", reader.number("rope_theta", 10000.0))
    return {
        "hidden_size": hidden_size,
        "num_heads": heads,
        "num_kv_heads": reader.integer("num_key_value_heads", default=heads),
        "head_dim": reader.integer("head_dim", default=head_dim or hidden_size // max(heads, 1)),
        "ffn_size": reader.integer("intermediate_size"),
        "num_layers": reader.integer("num_hidden_layers"),
        "tied_embeddings": reader.flag("tie_word_embeddings", False),
        "norm_epsilon": reader.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": None if kind in (None, "default") else kind,
    }


def _opt(reader: _Reader) -> Config:
    hidden_size, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    reader.require("do_layer_norm_before", True, True)
    reader.require("_remove_final_layer_norm", False, False)
    reader.require("word_embed_proj_dim", hidden_size, hidden_size)
    reader.require("activation_function", "relu", "relu")
    reader.require("enable_bias", True, True)
    reader.require("layer_norm_elementwise_affine", True, True)
    return {
        "family": "opt",
        "hidden_size": hidden_size,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden_size // max(heads, 1),
        "ffn_size": reader.integer("ffn_dim"),
        "num_layers": reader.integer("num_hidden_layers"),
        "tied_embeddings": reader.flag("tie_word_embeddings", True),
    }


def _gated(reader: _Reader) -> None:
    reader.require("hidden_act", "silu", "silu")
    reader.require("attention_bias", False, False)
    reader.require("mlp_bias", False, False)


def _llama(reader: _Reader) -> Config:
    _gated(reader)
    return {"family": "llama", **_attention(reader)}


def _mistral(reader: _Reader) -> Config:
    return {**_llama(reader), **_every_layer(reader)}


def _every_layer(reader: _Reader) -> Config:
    """Return the fields of a sliding window that all layers have unless the file says which; none without one."""
    return _windows(reader, reader.integer("num_hidden_layers")) if reader.config.get("sliding_window") is not None else {}


def _qwen3_windows(reader: _Reader) -> Config:
    """Return the fields of the sliding window, which the first `max_window_layers` layers lack; none if it is not used."""
    if not reader.flag("use_sliding_window", False):
        return {}
    layers = reader.integer("num_hidden_layers")
    full = min(reader.integer("max_window_layers", default=layers), layers)
    return _windows(reader, layers - full)


def _windows(reader: _Reader, sliding: int) -> Config:
    """Return the fields of a sliding window in some layers, or as many as ``layer_types`` or a pattern say."""
    layers = reader.integer("num_hidden_layers")
    if reader.config.get("layer_types") is not None:
        sliding = _sliding_layers(reader, layers)
    elif reader.config.get("sliding_window_pattern") is not None:
        # Every so-many-th layer sees everything (transformers, Cohere2Config and Gemma3TextConfig).
        pattern = reader.integer("sliding_window_pattern")
        if pattern < 1:
            raise reader.error("sliding_window_pattern", f"{pattern}: must be at least 1")
        sliding = layers - layers // pattern
    if sliding < 1:
        return {}
    return {"sliding_window": reader.integer("sliding_window"), "num_sliding_layers": None if sliding == layers else sliding}


def _sliding_layers(reader: _Reader, layers: int) -> int:
    kinds = reader.config["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise reader.error("layer_types", f"{kinds!r}: must name the kind of each of the {layers} layers")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise reader.error("layer_types", f"{kind!r}: only 'full_attention' or 'sliding_attention' is supported")
    return kinds.count("sliding_attention")


def _qwen3(reader: _Reader) -> Config:
    _gated(reader)
    return {"family": "qwen3", **_attention(reader, head_dim=128), **_qwen3_windows(reader)}


def _qwen3_moe(reader: _Reader) -> Config:
    _gated(reader)
    reader.require("decoder_sparse_step", 1, 1)
    layers = reader._get(("mlp_only_layers",), [])
    dense = len(layers) if isinstance(layers, list) else -1
    if layers != list(range(dense)):
        raise reader.error("mlp_only_layers", f"{layers!r}: dense layers must be the leading ones")
    moe = {
        "num_experts": reader.integer("num_experts", "num_local_experts"),
        "experts_per_token": reader.integer("num_experts_per_tok"),
        "expert_size": reader.integer("moe_intermediate_size"),
        "num_dense_layers": dense,
    }
    return {"family": "qwen3_moe", **_attention(reader), **_qwen3_windows(reader), "moe": moe}


def _mixtral(reader: _Reader) -> Config:
    reader.require("hidden_act", "silu", "silu")
    moe = {
        "num_experts": reader.integer("num_local_experts"),
        "experts_per_token": reader.integer("num_experts_per_tok"),
        "expert_size": reader.integer("intermediate_size"),
    }
    return {"family": "mixtral", **_attention(reader), **_every_layer(reader), "moe": moe}


def _deepseek_v3(reader: _Reader) -> Config:
    _gated(reader)
    reader.require("moe_layer_freq", 1, 1)
    mla = {
        "q_rank": reader.integer("q_lora_rank"),
        "kv_rank": reader.integer("kv_lora_rank"),
        "rope_dim": reader.integer("qk_rope_head_dim"),
        "nope_dim": reader.integer("qk_nope_head_dim"),
        "v_dim": reader.integer("v_head_dim"),
    }
    moe = {
        "num_experts": reader.integer("n_routed_experts"),
        "experts_per_token": reader.integer("num_experts_per_tok"),
        "expert_size": reader.integer("moe_intermediate_size"),
        "num_shared": reader.integer("n_shared_experts", default=0),
        "num_dense_layers": reader.integer("first_k_dense_replace", default=0),
        "router_bias": True,
    }
    # The file's own head_dim is the rotary part; queries and keys are as wide as both parts together.
    head_dim = mla["rope_dim"] + mla["nope_dim"]
    return {"family": "deepseek_v3", **_attention(reader), "head_dim": head_dim, "moe": moe, "mla": mla}


_ARCHITECTURES: dict[str, Callable[[_Reader], Config]] = {
    "OPTForCausalLM": _opt,
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
    "DeepseekV3ForCausalLM": _deepseek_v3,
}


def _architecture(reader: _Reader) -> Callable[[_Reader], Config]:
    listed = reader._get(("architectures",), _MISSING)
    name = listed[0] if isinstance(listed, list) and listed else listed
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        choices = ", ".join(_ARCHITECTURES)
        raise reader.error("architectures", f"{name!r} is not supported; there are: {choices}. Or write an llm as a TOML file.")
    return _ARCHITECTURES[name]


def _dtypes(reader: _Reader) -> Config:
    """Return the data types of weights and caches; quantised weights leave the caches at the file's own type."""
    named = reader._get(("dtype", "torch_dtype"), "float32")
    dtype = _DTYPES.get(str(named).removeprefix("torch."))
    if dtype is None:
        raise reader.error("dtype", f"{named!r}: must be one of {', '.join(_DTYPES)}")
    quantisation = reader.table("quantization_config")
    if not quantisation:
        return {"dtype": dtype}
    method, bits = quantisation.get("quant_method"), quantisation.get("bits")
    kinds: dict[object, Dtype] = {"fp8": "fp8", ("gptq", 4): "int4", ("gptq", 8): "int8", ("awq", 4): "int4"}
    weights = kinds.get(method) or kinds.get((method, bits))
    if weights is None:
        raise reader.error("quantization_config", f"method {method!r} is not supported; there are: fp8, gptq (4 or 8 bits), awq")
    return {"dtype": weights, "kv_dtype": dtype}


def _name(path: Path) -> str:
    """Return the folder's name, or the repository's where the folder is a snapshot of the Hugging Face cache."""
    folder = path.resolve().parent
    name = folder.parent.parent.name.rsplit("--", 1)[-1] if folder.parent.name == "snapshots" else folder.name
    return re.sub(r"[^A-Za-z0-9._\-]+", "-", name).lstrip("-._") or "llm"


def read_config(path: Path) -> Llm:
    """Read an llm from a Hugging Face ``config.json``, or from the folder that holds one.

    Parameters
    ----------
    path
        The file, or its folder.

    Raises
    ------
    SpecError
        If the file is absent or not JSON, lacks a field, or is of an architecture or a variant of one that an `Llm`
        cannot express.

    References
    ----------
    Keys and their defaults: Hugging Face transformers, ``configuration_*.py`` of each architecture.
    """
    path = path / "config.json" if path.is_dir() else path
    config = read_json(path)
    if not isinstance(config, dict):
        raise SpecError(f"expected an object of settings, got {type(config).__name__}", file=path)
    reader = _Reader(config, path)
    fields = {
        **_architecture(reader)(reader),
        **_dtypes(reader),
        "name": _name(path),
        "title": _name(path),
        "vocab_size": reader.integer("vocab_size"),
        "max_positions": reader.integer("max_position_embeddings"),
        "source": f"read from {path}",
    }
    return validate(Llm, fields, path)
