"""Fit the routed experts of models/gpus to published measurements; run with ``make calibrate``.

Needs aiconfigurator-core's tables (the folder ``systems/data`` of the unpacked wheel, in ``$OPTSCHED_AICONFIGURATOR``).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optsched import catalog
from optsched.cost.experts_fit import fit_experts
from optsched.cost.fit import Fitted
from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.experts_law import ExpertsLaw
from optsched.profiles.aiconfigurator_experts import read_experts
from optsched.profiles.experts import ExpertRows
from optsched.tier_file import with_tables

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Measured:
    """Where the experts of a gpu were measured, and the size of its last-level cache.

    Caches: NVIDIA's A100, Hopper, Ada and RTX Blackwell PRO architecture whitepapers (40, 50, 96 and 128 MB); B200 as the
    driver reports it (126 MB).
    """

    system: str
    engine: str
    cache_bytes: float
    dtypes: tuple[Dtype, ...] = ("bf16", "fp8")
    kernel: str | None = None


# Of 4-bit weights the tables have the experts of one llm (7,168 by 2,048, 8 of 384), so that no llm can be held out.
WITH_INT4: tuple[Dtype, ...] = ("bf16", "fp8", "int4")
# The newest tables of vLLM; on A100 vLLM 0.14 has tuned kernels for some llms only, so TensorRT-LLM's. On B200 vLLM takes
# TensorRT-LLM's kernels where they exist; the other ones are 30 % slower for the same shape and are not mixed in.
GPUS = {
    "a100-80gb": Measured("a100_sxm", "trtllm/1.0.0", 40e6, ("bf16",)),
    "h100-sxm": Measured("h100_sxm", "vllm/0.24.0", 50e6, WITH_INT4),
    "h200": Measured("h200_sxm", "vllm/0.24.0", 50e6, WITH_INT4),
    "b200": Measured("b200_sxm", "vllm/0.24.0", 126e6, kernel="trtllm"),
    "l40s": Measured("l40s", "vllm/0.24.0", 96e6, WITH_INT4),
    "rtx-pro-6000": Measured("rtx_pro_6000_server", "vllm/0.24.0", 128e6, WITH_INT4),
}


def experts_rows(name: str, dtype: Dtype) -> ExpertRows:
    """Return the measured experts of a gpu that read their weights from memory."""
    measured = GPUS[name]
    path = Path(os.environ["OPTSCHED_AICONFIGURATOR"]) / measured.system / "moe" / measured.engine / "moe_perf.parquet"
    rows = read_experts(path, dtype, measured.kernel)
    return rows.cold(DTYPE_BYTES[dtype], catalog.gpu(name).datasheet.memory_bytes_per_s, measured.cache_bytes)


def fits() -> Iterator[tuple[str, Dtype, ExpertRows, Fitted[ExpertsLaw]]]:
    """Yield each gpu and data type with its rows and its fitted law."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for name, measured in GPUS.items():
        for dtype in measured.dtypes:
            rows = experts_rows(name, dtype)
            yield name, dtype, rows, fit_experts(rows, catalog.tier(name), today)


def main() -> None:
    """Write the fitted tables into models/gpus."""
    for name, dtype, _, fitted in fits():
        path = ROOT / "models" / "gpus" / f"{name}.toml"
        path.write_text(with_tables(path.read_text(), {f"efficiency.experts.{dtype}": fitted.law}))


if __name__ == "__main__":
    main()
