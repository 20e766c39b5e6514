"""Fit the laws of attention of the packaged gpus: ``python tests/benchmarks/calibrate_attention.py [GPU ...]``.

Needs aiconfigurator-core's ``systems/data`` (``OPTSCHED_AICONFIGURATOR``) and the other third-party data (``OPTSCHED_DATA``).
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

from optsched import catalog
from optsched.cost.attention_tables import fit_tables
from optsched.tier_file import with_tables

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "h100-sxm": "h100_sxm",
    "h200": "h200_sxm",
    "a100-80gb": "a100_sxm",
    "l40s": "l40s",
    "b200": "b200_sxm",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
# The same chip with less memory: the laws are shares of its own, lower peaks.
SAME_CHIP = {"a100-40gb": "a100-80gb"}


def files(gpu: str, tables: Path, data: Path) -> list[Path]:
    """Return the tables of a gpu: vLLM's newest of plain attention, TensorRT-LLM's of latent attention."""
    found: list[Path] = []
    for folder, engine, names in (
        ("attention", "vllm", ("context_attention_perf", "generation_attention_perf")),
        ("mla", "trtllm", ("context_mla_perf", "generation_mla_perf")),
    ):
        for name in names:
            versions = (tables / SYSTEMS[gpu] / folder / engine).glob(f"*/{name}.parquet")
            found += sorted(versions, key=lambda path: _version(path.parent))[-1:]
    if gpu == "rtx-pro-6000":
        found += sorted((data / "profiles" / "llmservingsim" / "RTXPRO6000").glob("*/tp*/attention.csv"))
    return found


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.replace("rc", ".").split(".") if part.isdigit())


def calibrate(gpu: str, tables: Path, data: Path) -> None:
    """Write the laws of attention into a gpu's file, and into those of the same chip."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    laws = fit_tables(catalog.gpu(gpu), files(gpu, tables, data), day)
    for name in (gpu, *(other for other, chip in SAME_CHIP.items() if chip == gpu)):
        path = ROOT / "models" / "gpus" / f"{name}.toml"
        path.write_text(with_tables(path.read_text(), {f"efficiency.{table}": law for table, law in laws.items()}))


if __name__ == "__main__":
    given = Path(os.environ["OPTSCHED_AICONFIGURATOR"]), Path(os.environ["OPTSCHED_DATA"])
    for each in sys.argv[1:] or SYSTEMS:
        calibrate(each, *given)
