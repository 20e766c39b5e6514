"""Read what a real vLLM server did with a workload: times of its requests, and how many ran and waited each second.

References
----------
LLMServingSim (github.com/casys-kaist/LLMServingSim, MIT), ``bench/examples``: vLLM 0.19 serving Llama-3.1-8B on one RTX PRO 6000,
300 requests with lengths of ShareGPT. Its column of the cache's use is 0 throughout and is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from optsched.errors import SpecError

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class VllmRun:
    """One run of N requests, observed for S seconds.

    Attributes
    ----------
    ttft_s, tpot_s, e2e_s
        Per request, from the moment it was queued.
    makespan_s
        From the first request queued to the last token.
    time_s, running, waiting
        Requests in the batch and in the queue at each moment of the series.
    """

    ttft_s: Float64[Array, " N"]
    tpot_s: Float64[Array, " N"]
    e2e_s: Float64[Array, " N"]
    makespan_s: float
    time_s: Float64[Array, " S"]
    running: Float64[Array, " S"]
    waiting: Float64[Array, " S"]


def read_vllm_run(folder: Path) -> VllmRun:
    """Read ``requests.jsonl`` and ``timeseries.csv`` of a folder.

    Raises
    ------
    SpecError
        If a file is missing or damaged.
    """
    try:
        lines = (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        queued, first, last, tokens = (
            np.array([row[name] for row in rows], float)
            for name in ("queued_ts", "first_token_ts", "last_token_ts", "output_toks")
        )
        series = np.genfromtxt(folder / "timeseries.csv", delimiter=",", names=True)
        time_s, running, waiting = (np.asarray(series[name], float) for name in ("t", "running", "waiting"))
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{error}; give the folder of one run, with requests.jsonl and timeseries.csv", file=folder) from error
    tpot_s = (last - first) / np.maximum(tokens - 1, 1)
    return VllmRun(first - queued, tpot_s, last - queued, float(last.max() - queued.min()), time_s, running, waiting)
