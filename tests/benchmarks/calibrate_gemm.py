"""Fit the laws of matrix products and memory passes of the packaged gpus: ``python tests/benchmarks/calibrate_gemm.py [GPU ...]``.

Needs aiconfigurator-core's ``systems/data`` (``OPTSCHED_AICONFIGURATOR``) and the other third-party data (``OPTSCHED_DATA``).
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

from optsched import catalog
from optsched.cost.gemm_tables import fit_tables
from optsched.tier_file import with_tables

ROOT = Path(__file__).resolve().parents[2]
# vLLM's newest table; what it lacks (8-bit and 4-bit integers of the A100) from TensorRT-LLM's.
SWEEPS = {
    "h100-sxm": ("h100_sxm/gemm/vllm/0.24.0",),
    "h200": ("h200_sxm/gemm/vllm/0.24.0",),
    "a100-80gb": ("a100_sxm/gemm/vllm/0.14.0", "a100_sxm/gemm/trtllm/1.0.0"),
    "l40s": ("l40s/gemm/vllm/0.24.0",),
    "b200": ("b200_sxm/gemm/vllm/0.24.0",),
    "rtx-pro-6000": ("rtx_pro_6000_server/gemm/vllm/0.24.0",),
}
LAYERS = {
    "h100-sxm": "profiles/vidur/compute/h100/*/mlp.csv",
    "a100-80gb": "profiles/vidur/compute/a100/*/mlp.csv",
    "rtx-pro-6000": "profiles/llmservingsim/RTXPRO6000/*/tp*/dense.csv",
}
# The same chip with other memory: the laws are shares of its own peaks. Passes over memory alone for the H200.
SAME_CHIP = {"a100-40gb": ("a100-80gb", ("gemm", "elementwise")), "h200": ("h100-sxm", ("elementwise",))}


def sweeps(gpu: str, tables: Path) -> list[Path]:
    """Return the sweeps over shapes of a gpu."""
    return [tables / folder / "gemm_perf.parquet" for folder in SWEEPS[gpu]]


def layers(gpu: str, data: Path) -> list[Path]:
    """Return the tables of a gpu that name llms."""
    return sorted(data.glob(LAYERS[gpu])) if gpu in LAYERS else []


def calibrate(gpu: str, tables: Path, data: Path) -> None:
    """Write the laws of matrix products and of passes into a gpu's file, and into those of the same chip."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    laws = fit_tables(catalog.gpu(gpu), [*sweeps(gpu, tables), *layers(gpu, data)], day)
    targets = {gpu: laws}
    for other, (chip, families) in SAME_CHIP.items():
        if chip == gpu:
            targets[other] = {name: law for name, law in laws.items() if name.partition(".")[0] in families}
    for name, chosen in targets.items():
        path = ROOT / "models" / "gpus" / f"{name}.toml"
        path.write_text(with_tables(path.read_text(), {f"efficiency.{table}": law for table, law in chosen.items()}))


if __name__ == "__main__":
    given = Path(os.environ["OPTSCHED_AICONFIGURATOR"]), Path(os.environ["OPTSCHED_DATA"])
    for each in sys.argv[1:] or SWEEPS:
        calibrate(each, *given)
