"""Read LLMServingSim's layer measurements (CSV; github.com/casys-kaist/LLMServingSim, profiler/perf/GPU/LLM/tpN/dense.csv).

Times in us of every kernel of a layer but attention under vLLM 0.19, for 1 to 2,048 tokens, in 16 bits; ``per_sequence.csv``
beside it holds the head and the sampler.

References
----------
Cho et al., "LLMServingSim: A HW/SW Co-Simulation Infrastructure for LLM Inference Serving at Scale", IISWC 2024,
arXiv 2408.05499.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.profiles.gemms import GemmRows, PassRows

SOURCE = "LLMServingSim layer profile (github.com/casys-kaist/LLMServingSim, profiler/perf/{name}; vLLM 0.19)"
GEMMS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
PASSES = ("layernorm", "rotary_emb", "act_fn")


def _read(path: Path, count: str) -> dict[str, tuple[Int64[np.ndarray, " M"], Float64[np.ndarray, " M"]]]:
    """Return rows and seconds of each layer of a file."""
    import polars as pl

    try:
        table = pl.read_csv(path).filter(pl.col("time_us") > 0)
        layers = table["layer"].unique().to_list()
        parts = {name: table.filter(pl.col("layer") == name) for name in layers}
        return {name: (part[count].to_numpy(), part["time_us"].to_numpy() / 1e6) for name, part in parts.items()}
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError(f"{error}; give the file as published", file=path) from error


def read_llmservingsim_gemms(folder: Path, llm: Llm, tp: int) -> GemmRows:
    """Return the matrix products of a layer and the head.

    Parameters
    ----------
    folder
        A folder ``GPU/LLM/tpN`` with ``dense.csv`` and ``per_sequence.csv``.
    llm, tp
        Whose products they are, and over how many GPUs: the files name layers, not widths.

    Raises
    ------
    SpecError
        If the folder has no such tables.
    """
    measured = {**_read(folder / "dense.csv", "tokens"), **_read(folder / "per_sequence.csv", "sequences")}
    hidden, query = llm.hidden_size, llm.num_heads * llm.head_dim // tp
    kv = 2 * llm.head_dim * max(1, llm.num_kv_heads // tp)
    ffn = llm.ffn_size // tp
    widths = {
        "qkv_proj": (hidden, query + kv),
        "o_proj": (query, hidden),
        "gate_up_proj": (hidden, (2 if llm.gated_ffn else 1) * ffn),
        "down_proj": (ffn, hidden),
        "lm_head": (hidden, llm.vocab_size // tp),
    }
    found = [name for name in GEMMS if name in measured]
    if not found:
        raise SpecError(f"has none of the layers {', '.join(GEMMS)}; give the folder as published", file=folder)
    lengths = [len(measured[name][0]) for name in found]
    return GemmRows(
        rows=np.concatenate([measured[name][0] for name in found]),
        inner=np.repeat([widths[name][0] for name in found], lengths),
        outer=np.repeat([widths[name][1] for name in found], lengths),
        seconds=np.concatenate([measured[name][1] for name in found]),
        llm=np.full(sum(lengths), llm.name),
        dtype="bf16",
        source=SOURCE.format(name="/".join(folder.parts[-3:])),
    )


def read_llmservingsim_passes(folder: Path, llm: Llm, tp: int) -> PassRows:
    """Return norms (with the residual addition), rotations and activations; bytes of each input and output once.

    Parameters
    ----------
    folder, llm, tp
        As in `read_llmservingsim_gemms`.

    Raises
    ------
    SpecError
        If the folder has no such tables.
    """
    measured = _read(folder / "dense.csv", "tokens")
    query, kv = llm.num_heads * llm.head_dim // tp, llm.head_dim * max(1, llm.num_kv_heads // tp)
    elements = {"layernorm": 4 * llm.hidden_size, "rotary_emb": 2 * (query + kv), "act_fn": 3 * llm.ffn_size // tp}
    found = [name for name in PASSES if name in measured]
    if not found:
        raise SpecError(f"has none of the layers {', '.join(PASSES)}; give the folder as published", file=folder)
    lengths = [len(measured[name][0]) for name in found]
    tokens = np.concatenate([measured[name][0] for name in found])
    return PassRows(
        kernel=np.repeat(np.array(found), lengths),
        tokens=tokens,
        moved_bytes=2.0 * tokens * np.repeat([elements[name] for name in found], lengths),
        seconds=np.concatenate([measured[name][1] for name in found]),
        llm=np.full(len(tokens), llm.name),
        source=SOURCE.format(name="/".join(folder.parts[-3:])),
    )
