"""Fit the laws of matrix products and of passes over memory of a gpu to the tables that others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from optsched import catalog
from optsched.cost.gemm_calibration import card_of, fit_elementwise, fit_gemm
from optsched.cost.rates import peak_flops_per_s
from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.frozen import Frozen
from optsched.domain.hardware import Gpu, Tier
from optsched.errors import SpecError
from optsched.profiles.aiconfigurator_gemm import FORMATS, formats_of, read_gemms
from optsched.profiles.gemms import GemmRows, PassRows
from optsched.profiles.llmservingsim_layers import read_llmservingsim_gemms, read_llmservingsim_passes
from optsched.profiles.rows import joined
from optsched.profiles.tables import column_names
from optsched.profiles.vidur_layers import read_vidur_gemms, read_vidur_passes

AICONFIGURATOR = frozenset({"gemm_dtype", "m", "n", "k", "latency"})
VIDUR = frozenset({"num_tokens", "num_tensor_parallel_workers", "time_stats.mlp_up_proj.median"})
LLMSERVINGSIM = frozenset({"layer", "tokens", "time_us"})
COLUMNS = (AICONFIGURATOR, VIDUR, LLMSERVINGSIM)


def peak_of(gpu: Gpu, dtype: Dtype) -> float:
    """Return the datasheet rate that products of a data type are a share of."""
    return peak_flops_per_s(Tier(gpu, gpu.datasheet.power_w), dtype)


def read_layers(path: Path) -> tuple[GemmRows, PassRows]:
    """Return the products and passes of a table that names llms: Vidur's, or LLMServingSim's in its folder ``LLM/tpN``.

    Raises
    ------
    SpecError
        If the file is damaged, or its folders name no known llm and degree of tensor parallelism.
    """
    if column_names(path) >= VIDUR:
        return read_vidur_gemms(path), read_vidur_passes(path)
    folder = path.parent
    degree = folder.name.removeprefix("tp")
    if not degree.isdigit():
        raise SpecError(f"folder {folder.name} is not tp1, tp2, ...; keep the folders as published", file=path)
    llm = catalog.llm(folder.parent.name.lower())
    return read_llmservingsim_gemms(folder, llm, int(degree)), read_llmservingsim_passes(folder, llm, int(degree))


def fit_tables(gpu: Gpu, files: Sequence[Path], day: str) -> Mapping[str, Frozen]:
    """Fit ``gemm.DTYPE`` to each data type of each sweep over shapes, and ``elementwise`` to the passes of all llms.

    Parameters
    ----------
    gpu
        Whose peaks the laws are shares of.
    files
        Tables with one of `COLUMNS`. The products of named llms are no sweep: they are left to check a law with.
    day
        Date of the fit.

    Raises
    ------
    SpecError
        If a file is damaged.
    ProblemError
        If a table has too few rows.
    """
    laws: dict[str, Frozen] = {}
    passes: list[PassRows] = []
    for path in files:
        if not column_names(path) >= AICONFIGURATOR:
            passes.append(read_layers(path)[1])
            continue
        for dtype in FORMATS:
            if dtype in formats_of(path) and f"gemm.{dtype}" not in laws:
                laws[f"gemm.{dtype}"] = fit_gemm(read_gemms(path, dtype), card_of(gpu.datasheet, peak_of(gpu, dtype)), day).law
    if passes:
        laws["elementwise"] = fit_elementwise(joined(passes), card_of(gpu.datasheet, peak_of(gpu, "fp16")), day).law
    return laws


def as_fitted(rows: GemmRows) -> GemmRows:
    """Return 16-bit rows of either kind as bf16, whose law serves both."""
    return replace(rows, dtype="bf16") if rows.dtype == "fp16" else rows


def datasheet_s(gpu: Gpu, rows: GemmRows) -> Float64[np.ndarray, " S"]:
    """Return the speed of light of each product: its FLOPs or its bytes at the datasheet's peaks, whichever takes longer."""
    m, k, n = rows.rows.astype(float), rows.inner.astype(float), rows.outer.astype(float)
    weight = DTYPE_BYTES[rows.dtype]
    moved = k * n * weight + 2.0 * m * (k + n)
    computed = 2.0 * m * k * n / peak_of(gpu, rows.dtype)
    return np.asarray(np.maximum(computed, moved / gpu.datasheet.memory_bytes_per_s), dtype=np.float64)
