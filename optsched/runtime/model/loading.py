"""The weights of an llm, wherever a plan says they are."""

from __future__ import annotations

import torch

from optsched.domain.llm import Llm
from optsched.runtime.model.gguf_file import SUFFIX, load_gguf
from optsched.runtime.model.huggingface import load_folder
from optsched.runtime.model.weights import Weights, random_weights


def weights_of(llm: Llm, source: str | None, seed: int, dtype: torch.dtype | None, device: str) -> Weights:
    """Return an llm's weights.

    Parameters
    ----------
    llm
        Its shape.
    source
        A ``.gguf`` file, or a folder of safetensors files; None: random ones of `seed`.
    seed
        Of random weights.
    dtype, device
        Data type (None: the llm's) and place.

    Raises
    ------
    SpecError
        If they cannot be read, or do not fit the llm.
    MissingExtraError
        If a library that reads them is not installed.
    """
    if source is None:
        return random_weights(llm, seed, dtype, device)
    return (load_gguf if source.endswith(SUFFIX) else load_folder)(llm, source, dtype, device)
