"""Read what aiconfigurator collected of servers under closed loops (CSV; PyPI aiconfigurator-core, systems/silicon_sample.csv).

A row is a server that was kept at a number of requests in flight, with the mean time to the first token and the mean time
per token after it. Two clients made them: InferenceMAX's, which draws each length from 80 to 100 % of the nominal one, and
one of fixed lengths, of which the file says nothing more.

References
----------
https://github.com/ai-dynamo/aiconfigurator (Apache-2.0); https://pypi.org/project/aiconfigurator-core;
https://github.com/SemiAnalysisAI/InferenceX (InferenceMAX), ``benchmarks/70b_fp8_h200_slurm.sh`` and its siblings.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optsched.errors import SpecError

GPUS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200"}
LLMS = {
    "Qwen/Qwen3-32B": "qwen3-32b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
}
_ENGINES: dict[str, Literal["vllm", "trtllm", "sglang"]] = {"vllm": "vllm", "trtllm": "trtllm", "sglang": "sglang"}
_NEEDED = (
    "backend", "model_path", "system", "precision", "mode", "isl", "osl", "batch_size", "tp_size", "pp_size",
    "silicon_data_source", "silicon_ttft_ms", "silicon_tpot_ms",
)  # fmt: skip
_INFERENCEMAX = ("source_file=2026-04-06.csv", "db-dump/")


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A server of one replica, kept at `concurrency` requests in flight.

    Attributes
    ----------
    llm, gpu, tp
        What ran on how many of which gpu, by the catalogue's names.
    dtype
        Of the weights.
    engine
        What served it.
    inferencemax
        Whether InferenceMAX's client sent the requests; otherwise all had the nominal lengths.
    concurrency, prompt_tokens, output_tokens
        The load.
    ttft_s, tpot_s
        Mean time to the first token, and per token after it.
    """

    llm: str
    gpu: str
    tp: int
    dtype: Literal["bf16", "fp8"]
    engine: Literal["vllm", "trtllm", "sglang"]
    inferencemax: bool
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


def read_closed_loops(path: Path) -> tuple[list[ClosedLoop], dict[str, int]]:
    """Read the rows of dense llms on single Hopper servers, and how many others were refused for which reason.

    Parameters
    ----------
    path
        ``silicon_sample.csv`` as published.

    Raises
    ------
    SpecError
        If the file cannot be read, lacks a column, or a row of those kept says what no server can.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{error}; give aiconfigurator-core's silicon_sample.csv", file=path) from error
    missing = [name for name in _NEEDED if not rows or name not in rows[0]]
    if missing:
        raise SpecError(f"columns {', '.join(missing)} are missing; give silicon_sample.csv as published", file=path)
    kept: list[ClosedLoop] = []
    refused: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if reason := _refusal(row):
            refused[reason] = refused.get(reason, 0) + 1
            continue
        try:
            kept.append(_loop(row))
        except ValueError as error:
            raise SpecError(f"line {number}: {error}; give silicon_sample.csv as published", file=path) from error
    return kept, refused


def _refusal(row: dict[str, str]) -> str | None:
    """Say why a row is not comparable; the first reason of several."""
    if row["system"] not in GPUS:
        return "not an H100 or H200"
    if row["mode"] != "agg":
        return "prefill and decode on servers of their own"
    if row["model_path"] not in LLMS:
        return "mixture of experts, or an llm that is not in the catalogue"
    if row["backend"] not in _ENGINES or row["precision"] not in ("", "fp8") or row["pp_size"] != "1":
        return "another engine, data type, or a pipeline"
    return None


def _loop(row: dict[str, str]) -> ClosedLoop:
    loop = ClosedLoop(
        llm=LLMS[row["model_path"]],
        gpu=GPUS[row["system"]],
        tp=int(row["tp_size"]),
        dtype="fp8" if row["precision"] == "fp8" else "bf16",
        engine=_ENGINES[row["backend"]],
        inferencemax=row["silicon_data_source"].startswith(_INFERENCEMAX),
        concurrency=int(row["batch_size"]),
        prompt_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
    )
    sizes = (loop.tp, loop.concurrency, loop.prompt_tokens, loop.output_tokens - 1, loop.ttft_s, loop.tpot_s)
    if not all(0 < size < float("inf") for size in sizes):
        raise ValueError("sizes and times must be positive numbers, and the output longer than one token")
    return loop
