"""Fit a gpu's routed experts to the tables that others published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optsched.cost.experts_fit import fit_experts
from optsched.domain.dtypes import DTYPE_BYTES
from optsched.domain.experts_law import ExpertsLaw
from optsched.domain.hardware import Gpu, Tier
from optsched.profiles.aiconfigurator_experts import DTYPES, data_types, read_experts

TABLE_COLUMNS = (frozenset({"moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "latency"}),)


def fit_tables(gpu: Gpu, files: Sequence[Path], day: str) -> dict[str, ExpertsLaw]:
    """Return ``experts.DTYPE`` for each data type, of the first file that has it.

    Parameters
    ----------
    gpu
        Whose peaks the laws are shares of, and whose cache decides which rows a repeated benchmark did not read from memory.
    files
        Tables with one of `TABLE_COLUMNS`.
    day
        Date of the fit.

    Raises
    ------
    SpecError
        If a file is damaged, or the datasheet has no rate for a data type.
    ProblemError
        If a table has too few rows.
    """
    sheet, laws = gpu.datasheet, dict[str, ExpertsLaw]()
    for path in files:
        present = data_types(path)
        for dtype in DTYPES:
            if dtype in present and f"experts.{dtype}" not in laws:
                rows = read_experts(path, dtype).cold(DTYPE_BYTES[dtype], sheet.memory_bytes_per_s, sheet.cache_bytes or 0.0)
                laws[f"experts.{dtype}"] = fit_experts(rows, Tier(gpu, sheet.power_w), day).law
    return laws
