"""Read Vidur's layer measurements (CSV; github.com/microsoft/vidur, data/profiling/compute/GPU/LLM/mlp.csv).

Times in ms of every kernel of a layer but attention, for 1 to 4,096 tokens and the tensor parallelism of named llms, in 16 bits.

References
----------
Agrawal et al., "Vidur: A Large-Scale Simulation Framework For LLM Inference", MLSys 2024, arXiv 2405.05465.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.errors import SpecError
from optsched.profiles.gemms import GemmRows, PassRows

if TYPE_CHECKING:
    import polars as pl

SOURCE = "Vidur layer profiles (github.com/microsoft/vidur, data/profiling/compute/{name}; arXiv 2405.05465)"
GEMMS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
PASSES = ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act")
_RESOLUTION_S = 1e-6  # times are written in steps of 0.001 ms


def _table(path: Path) -> pl.DataFrame:
    """Return the file with widths on each GPU: hidden, query, kv (K and V together) and ffn."""
    import polars as pl

    try:
        table = pl.read_csv(path)
        tp = pl.col("num_tensor_parallel_workers")
        head = pl.col("n_embd") // pl.col("n_head")
        return table.with_columns(
            tokens=pl.col("num_tokens").cast(pl.Int64),
            hidden=pl.col("n_embd").cast(pl.Int64),
            query=pl.col("n_embd") // tp,
            kv=2 * head * pl.max_horizontal(pl.col("n_kv_head") // tp, 1),
            ffn=pl.col("n_expanded_embd") // tp,
            inputs=pl.when(pl.col("use_gated_mlp")).then(2).otherwise(1),
            **{name: pl.col(f"time_stats.{name}.median") / 1e3 for name in (*GEMMS, *PASSES)},
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError(f"{error}; give the file as published", file=path) from error


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:-1])


def read_vidur_gemms(path: Path) -> GemmRows:
    """Return the four matrix products of a layer, each number of tokens and degree of tensor parallelism.

    Parameters
    ----------
    path
        An ``mlp.csv``, in its folder ``GPU/LLM``.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    table = _table(path)
    hidden, query, kv, ffn, inputs = (table[name].to_numpy() for name in ("hidden", "query", "kv", "ffn", "inputs"))
    widths = {
        "attn_pre_proj": (hidden, query + kv),
        "attn_post_proj": (query, hidden),
        "mlp_up_proj": (hidden, inputs * ffn),
        "mlp_down_proj": (ffn, hidden),
    }
    seconds = np.concatenate([table[name].to_numpy() for name in GEMMS])
    rows = GemmRows(
        rows=np.tile(table["tokens"].to_numpy(), len(GEMMS)),
        inner=np.concatenate([widths[name][0] for name in GEMMS]).astype(np.int64),
        outer=np.concatenate([widths[name][1] for name in GEMMS]).astype(np.int64),
        seconds=seconds,
        llm=np.full(len(seconds), path.parent.name),
        dtype="fp16",
        source=SOURCE.format(name=_name(path)),
    )
    return rows.where(seconds > 0, "no time")


def read_vidur_passes(path: Path) -> PassRows:
    """Return norms, rotations and activations of a layer; bytes of each input and output once, 16 bits each.

    Parameters
    ----------
    path
        As in `read_vidur_gemms`. Times below 5 us are left out: they are written to the microsecond. So are the additions of the
        residual, which today's engines do within the norm.

    Raises
    ------
    SpecError
        If the file is not such a table.
    """
    table = _table(path)
    hidden, query, kv, ffn, inputs = (table[name].to_numpy() for name in ("hidden", "query", "kv", "ffn", "inputs"))
    elements = {
        "input_layernorm": 2 * hidden,
        "post_attention_layernorm": 2 * hidden,
        "attn_rope": 2 * (query + kv // 2),
        "mlp_act": (inputs + 1) * ffn,
    }
    tokens = table["tokens"].to_numpy()
    seconds = np.concatenate([table[name].to_numpy() for name in PASSES])
    kept = seconds >= 5 * _RESOLUTION_S
    return PassRows(
        kernel=np.repeat(np.array(PASSES), len(table))[kept],
        tokens=np.tile(tokens, len(PASSES))[kept],
        moved_bytes=np.concatenate([2.0 * tokens * elements[name] for name in PASSES])[kept],
        seconds=seconds[kept],
        llm=np.full(int(kept.sum()), path.parent.name),
        source=SOURCE.format(name=_name(path)),
        left_out={
            "times below 5 us, written to the microsecond": int((~kept).sum()),
            "additions of the residual, done within the norm today": len(table),
        },
    )
