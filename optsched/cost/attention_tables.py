"""Turn published tables of attention into the laws of a gpu."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optsched import catalog
from optsched.cost.attention_calibration import fit_attention, thinned
from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw
from optsched.domain.dtypes import Dtype
from optsched.domain.hardware import Gpu
from optsched.domain.llm import Llm
from optsched.errors import SpecError
from optsched.profiles import aiconfigurator_attention, frontier_attention, llmservingsim_attention
from optsched.profiles.attention import AttentionRows
from optsched.profiles.rows import joined
from optsched.profiles.tables import column_names

# Columns that tell a table of attention, by its publisher.
TABLE_COLUMNS = (
    frozenset({"op_name", "kv_cache_dtype", "num_heads", "num_key_value_heads", "head_dim", "step", "latency"}),
    frozenset({"op_name", "kv_cache_dtype", "mla_dtype", "num_heads", "step", "latency"}),
    frozenset(llmservingsim_attention.COLUMNS),
    frozenset(frontier_attention.COLUMNS),
)
_OPERATIONS = {
    "context_attention": ("prefill_attention", False),
    "generation_attention": ("decode_attention", False),
    "mla_context": ("latent_prefill_attention", True),
    "mla_generation": ("latent_decode_attention", True),
}


def read_tables(files: Sequence[Path]) -> dict[tuple[str, Dtype], AttentionRows]:
    """Return the rows of tables by the law they are for and the data type of the cache.

    Parameters
    ----------
    files
        Tables of `TABLE_COLUMNS`. LLMServingSim's are named ``.../LLM/tpN/attention.csv``: their folders say whose heads they
        time; tables of the two modules around latent attention (projections included) are passed over.

    Raises
    ------
    SpecError
        If a table is damaged, or its folders name no known llm.
    """
    found: dict[tuple[str, Dtype], list[AttentionRows]] = {}
    for file in files:
        if file.suffix == ".csv":
            chunks, steps = _read_csv(file)
            found.setdefault(("prefill_attention", "bf16"), []).append(chunks)
            found.setdefault(("decode_attention", "bf16"), []).append(steps)
            continue
        law, latent = _OPERATIONS.get(aiconfigurator_attention.operation(file), (None, False))
        if law is None:
            continue
        read = aiconfigurator_attention.read_latent_attention if latent else aiconfigurator_attention.read_attention
        for cache in aiconfigurator_attention.CACHE_TYPES:
            rows = read(file, cache, decode="decode" in law)
            if len(rows):
                found.setdefault((law, cache), []).append(rows)
    return {key: joined(parts) for key, parts in found.items()}


def _read_csv(file: Path) -> tuple[AttentionRows, AttentionRows]:
    """Return the prefills and the decode steps of a table of 16-bit caches."""
    if column_names(file) >= frozenset(frontier_attention.COLUMNS):
        return frontier_attention.read_attention(file)
    llm, tp = _replica(file)
    return llmservingsim_attention.read_attention(file, llm, tp, 2.0)


def _replica(file: Path) -> tuple[Llm, int]:
    """Return the llm and the tensor parallelism that the folders of a table name."""
    tp, name = file.parent.name, file.parent.parent.name.lower()
    if not (tp.startswith("tp") and tp[2:].isdigit() and int(tp[2:])):
        raise SpecError(f"folder {tp!r} names no tensor parallelism; put the table into LLM/tpN", file=file)
    return catalog.llm(name), int(tp[2:])


def fit_tables(gpu: Gpu, files: Sequence[Path], day: str) -> dict[str, PrefillAttentionLaw | DecodeAttentionLaw]:
    """Return laws by the name of their table below ``[efficiency]``, such as ``prefill_attention.bf16``.

    Parameters
    ----------
    gpu
        Whose datasheet the laws are shares of.
    files
        As in `read_tables`.
    day
        Date of the fit.

    Raises
    ------
    SpecError
        As `read_tables`, or if the datasheet has no 16-bit rate.

    Notes
    -----
    The priors are the defaults of the records, not the gpu's present laws: fitting twice gives the same law twice.
    """
    rates = gpu.datasheet.flops_per_s
    peak = rates.get("bf16") or rates.get("fp16")
    if peak is None:
        raise SpecError(f"{gpu.name} has no bf16 or fp16 rate, in which attention computes; add it to its [datasheet.flops]")
    laws: dict[str, PrefillAttentionLaw | DecodeAttentionLaw] = {}
    for (law, cache), rows in read_tables(files).items():
        kept, bandwidth = thinned(rows), gpu.datasheet.memory_bytes_per_s
        if "prefill" in law:
            laws[f"{law}.{cache}"] = fit_attention(PrefillAttentionLaw(), kept, peak, bandwidth, day).law
        else:
            laws[f"{law}.{cache}"] = fit_attention(DecodeAttentionLaw(), kept, peak, bandwidth, day).law
    return laws
