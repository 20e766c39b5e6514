"""Weights in Hugging Face's naming: a state dict, or a folder of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from optsched.domain.llm import Llm
from optsched.errors import MissingExtraError, SpecError
from optsched.runtime.model.weights import LayerWeights, Weights, refuse_what_cannot_run, torch_dtype

_OPT_PREFIX, _LLAMA_PREFIX = "model.decoder.", "model."


class _State:
    """Tensors by name, checked against the shape that the llm implies."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> None:
        self._state, self._dtype, self._device = state, dtype, device

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def get(self, name: str, *shape: int) -> Tensor:
        """Return one tensor in the model's data type."""
        if name not in self._state:
            raise SpecError(f"the weights have no tensor {name!r}; are they of another family?")
        tensor = self._state[name]
        if tuple(tensor.shape) != shape:
            raise SpecError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, the llm's shape implies {shape}; was another llm meant?"
            )
        return tensor.detach().to(device=self._device, dtype=self._dtype)


def load_state_dict_from_hf(
    llm: Llm, state: Mapping[str, Tensor], dtype: torch.dtype | None = None, device: str = "cpu"
) -> Weights:
    """Take over the tensors of a ``transformers`` causal language model (OPT, Llama, Qwen3).

    Parameters
    ----------
    llm
        The shape that the tensors must have.
    state
        Tensors by the names of ``OPTForCausalLM``, ``LlamaForCausalLM`` or ``Qwen3ForCausalLM``.
    dtype
        Data type to run in; None: the llm's.
    device
        Where to put them.

    Raises
    ------
    SpecError
        If a tensor is missing or of another shape, or the runtime cannot run the llm.
    """
    refuse_what_cannot_run(llm)
    tensors = _State(state, dtype or torch_dtype(llm), device)
    d, vocabulary = llm.hidden_size, llm.vocab_size
    opt = llm.family == "opt"
    prefix = _OPT_PREFIX if opt else _LLAMA_PREFIX
    layers = tuple((_opt_layer if opt else _llama_layer)(llm, tensors, f"{prefix}layers.{i}.") for i in range(llm.num_layers))
    embedding = tensors.get(f"{prefix}embed_tokens.weight", vocabulary, d)
    return Weights(
        embedding=embedding,
        positions=tensors.get(f"{prefix}embed_positions.weight", llm.max_positions + 2, d) if opt else None,
        layers=layers,
        final_norm=tensors.get(f"{prefix}final_layer_norm.weight" if opt else f"{prefix}norm.weight", d),
        final_norm_bias=tensors.get(f"{prefix}final_layer_norm.bias", d) if opt else None,
        head=embedding if llm.tied_embeddings else tensors.get("lm_head.weight", vocabulary, d),
    )


def _stacked(tensors: _State, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> Tensor:
    return torch.cat([tensors.get(name, count, columns) for name, count in zip(names, rows, strict=True)])


def _opt_layer(llm: Llm, tensors: _State, prefix: str) -> LayerWeights:
    d, f, width = llm.hidden_size, llm.ffn_size, llm.num_heads * llm.head_dim
    attention = f"{prefix}self_attn."
    parts = ("q_proj", "k_proj", "v_proj")
    return LayerWeights(
        attention_norm=tensors.get(f"{prefix}self_attn_layer_norm.weight", d),
        attention_norm_bias=tensors.get(f"{prefix}self_attn_layer_norm.bias", d),
        qkv=_stacked(tensors, tuple(f"{attention}{part}.weight" for part in parts), (width,) * 3, d),
        qkv_bias=torch.cat([tensors.get(f"{attention}{part}.bias", width) for part in parts]),
        q_norm=None,
        k_norm=None,
        out=tensors.get(f"{attention}out_proj.weight", d, width),
        out_bias=tensors.get(f"{attention}out_proj.bias", d),
        ffn_norm=tensors.get(f"{prefix}final_layer_norm.weight", d),
        ffn_norm_bias=tensors.get(f"{prefix}final_layer_norm.bias", d),
        up=tensors.get(f"{prefix}fc1.weight", f, d),
        up_bias=tensors.get(f"{prefix}fc1.bias", f),
        down=tensors.get(f"{prefix}fc2.weight", d, f),
        down_bias=tensors.get(f"{prefix}fc2.bias", d),
    )


def _llama_layer(llm: Llm, tensors: _State, prefix: str) -> LayerWeights:
    d, f, dh = llm.hidden_size, llm.ffn_size, llm.head_dim
    q, kv = llm.num_heads * dh, llm.num_kv_heads * dh
    attention, ffn = f"{prefix}self_attn.", f"{prefix}mlp."
    parts = tuple(f"{attention}{part}.weight" for part in ("q_proj", "k_proj", "v_proj"))
    return LayerWeights(
        attention_norm=tensors.get(f"{prefix}input_layernorm.weight", d),
        attention_norm_bias=None,
        qkv=_stacked(tensors, parts, (q, kv, kv), d),
        qkv_bias=None,
        q_norm=tensors.get(f"{attention}q_norm.weight", dh) if llm.qk_norm else None,
        k_norm=tensors.get(f"{attention}k_norm.weight", dh) if llm.qk_norm else None,
        out=tensors.get(f"{attention}o_proj.weight", d, q),
        out_bias=None,
        ffn_norm=tensors.get(f"{prefix}post_attention_layernorm.weight", d),
        ffn_norm_bias=None,
        up=_stacked(tensors, (f"{ffn}gate_proj.weight", f"{ffn}up_proj.weight"), (f, f), d),
        up_bias=None,
        down=tensors.get(f"{ffn}down_proj.weight", d, f),
        down_bias=None,
    )


def load_folder(llm: Llm, folder: Path | str, dtype: torch.dtype | None = None, device: str = "cpu") -> Weights:
    """Read the safetensors files of a Hugging Face model folder.

    Raises
    ------
    SpecError
        If the folder holds none, they are damaged, or they do not fit the llm.
    MissingExtraError
        If safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("Loading weights", "runtime") from error
    folder = Path(folder)
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise SpecError(f"not a readable safetensors file: {error}", file=path) from error
    try:
        return load_state_dict_from_hf(llm, state, dtype, device)
    except SpecError as error:
        raise SpecError(error.reason, file=folder) from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise SpecError("not a safetensors index; it needs a weight_map", file=index) from error
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise SpecError(
            "no *.safetensors files there; give the folder of a Hugging Face model, or leave weights out", file=folder
        )
    return found
