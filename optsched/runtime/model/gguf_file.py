"""GGUF files (llama.cpp): weights, de-quantised to one data type, and the metadata that a tokenizer is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from optsched.domain.llm import Llm
from optsched.errors import MissingExtraError, SpecError
from optsched.runtime.model.huggingface import load_state_dict_from_hf
from optsched.runtime.model.weights import Weights

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX = ".gguf"
# llama.cpp's names (gguf-py, tensor_mapping.py) and those of transformers.
_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3"}


def open_gguf(path: Path | str) -> GGUFReader:
    """Open a file.

    Raises
    ------
    MissingExtraError
        If gguf is not installed.
    SpecError
        If the file cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError("Reading GGUF files", "runtime") from error
    try:
        return GGUFReader(Path(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise SpecError(f"not a readable GGUF file: {error}; is it truncated?", file=path) from error


def text_of(reader: GGUFReader, key: str) -> str | None:
    """Return a text of the metadata; None if there is none of that name."""
    found = reader.get_field(key)
    return None if found is None else str(found.contents())


def load_gguf(llm: Llm, path: Path | str, dtype: torch.dtype | None = None, device: str = "cpu") -> Weights:
    """Read a file's weights.

    Parameters
    ----------
    llm
        The shape that they must have.
    path
        A ``.gguf`` file of a Llama or Qwen3 model, quantised in any way that the gguf package undoes.
    dtype
        Data type to run in; None: the llm's.
    device
        Where to put them.

    Raises
    ------
    SpecError
        If it cannot be read, or does not fit the llm.
    MissingExtraError
        If gguf is not installed.
    """
    reader = open_gguf(path)
    architecture = text_of(reader, "general.architecture")
    if _ARCHITECTURES.get(llm.family) != architecture:
        raise SpecError(f"{architecture!r}: the architecture of another family than {llm.family}; use its file", file=path)
    try:
        return load_state_dict_from_hf(llm, _Tensors(llm, reader), dtype, device)
    except SpecError as error:
        raise SpecError(error.reason, file=path) from error


@dataclass(slots=True)
class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file under transformers' names, each de-quantised when it is asked for."""

    llm: Llm
    reader: GGUFReader
    index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.index = {_translated(tensor.name): number for number, tensor in enumerate(self.reader.tensors)}

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __contains__(self, name: object) -> bool:
        return name in self.index

    def __getitem__(self, name: str) -> Tensor:
        from gguf import dequantize

        stored = self.reader.tensors[self.index[name]]
        values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
        heads = {"q_proj": self.llm.num_heads, "k_proj": self.llm.num_kv_heads}.get(name.split(".")[-2])
        return values if heads is None or self.llm.family != "llama" else _halves_first(values, heads)


def _translated(name: str) -> str:
    """Return transformers' name of a tensor; names that mean nothing to us stay."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    prefix, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{kind}" if prefix == "blk" and part in _NAMES else name


def _halves_first(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a Llama head's rows, which pairs neighbours for rotation; ours pairs a head's two halves.

    References
    ----------
    llama.cpp, ``convert_hf_to_gguf.py``, ``LlamaModel.permute``.
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
