"""Fit a gpu's routed experts to the tables that others published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optsched.cost.experts_fit import fit_experts
from optsched.domain.dtypes import DTYPE_BYTES
from optsched.domain.experts_law import ExpertsLaw
from optsched.domain.hardware import Gpu, Tier
from optsched.profiles import frontier_experts
from optsched.profiles.aiconfigurator_experts import DTYPES, data_types, read_experts
from optsched.profiles.experts import ExpertRows

TABLE_COLUMNS = (
    frozenset({"moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "latency"}),
    frozenset(frontier_experts.COLUMNS),
)


def read_table(path: Path) -> list[ExpertRows]:
    """Return the rows of a table with one of `TABLE_COLUMNS`, one entry per data type of weights.

    Raises
    ------
    SpecError
        If it is damaged.
    """
    if path.suffix == ".csv":
        return [frontier_experts.read_experts(path)]
    present = data_types(path)
    return [read_experts(path, dtype) for dtype in DTYPES if dtype in present]


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
        for rows in read_table(path):
            if f"experts.{rows.dtype}" not in laws:
                cold = rows.cold(DTYPE_BYTES[rows.dtype], sheet.memory_bytes_per_s, sheet.cache_bytes or 0.0)
                laws[f"experts.{rows.dtype}"] = fit_experts(cold, Tier(gpu, sheet.power_w), day).law
    return laws
