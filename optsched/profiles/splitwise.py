"""Read the step times and powers of Splitwise (CSV; github.com/Mutinifni/splitwise-sim, data/perf_model.csv).

Llama-2-70B and BLOOM-176B on A100-80GB and H100-80GB servers: the first token of a batch of prompts, the mean of the
following tokens, and on A100 the power of one GPU.

References
----------
Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024, arXiv 2311.18677.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsched.errors import SpecError
from optsched.profiles.published import read_published
from optsched.profiles.steps import RunRows, StepRows

if TYPE_CHECKING:
    import polars as pl

SOURCE = "Splitwise performance data (github.com/Mutinifni/splitwise-sim, data/perf_model.csv; arXiv 2311.18677)"
ENGINE = "splitwise-vllm"
LLMS = {"llama2-70b": "llama-2-70b", "bloom-176b": "bloom-176b"}
GPUS = {"a100-80gb": "a100-80gb", "h100-80gb": "h100-sxm"}

# These rows are H100 prompts times a constant, not measurements of a capped card.
SYNTHETIC = "h100-80gb-pcap"
# A run that took as long as its prompt and its tokens together ran the batch at once, to the last token.
CONSISTENT = 0.05
# The mean of a run lies between the powers of its two phases; prompts draw more than tokens, so more of them cannot lower it.
POWER_SLACK = 0.03

COLUMNS = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "average_power",
    "prompt_time",
    "token_time",
    "e2e_time",
)
SHAPE = ["model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size"]


def _measured(path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the medians of repeated runs in seconds, and how many synthetic rows were dropped."""
    import polars as pl

    table = read_published(path, COLUMNS)
    try:
        real = table.filter(pl.col("hardware") != SYNTHETIC)
        medians = real.group_by(SHAPE).agg(pl.col(name).median() for name in COLUMNS if name not in SHAPE).sort(SHAPE)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SpecError(f"{error}; give the file as published", file=path) from error
    return (
        medians.with_columns(pl.col("prompt_time", "token_time", "e2e_time") / 1e3).with_columns(
            whole=((pl.col("prompt_time") + (pl.col("token_size") - 1) * pl.col("token_time")) / pl.col("e2e_time") - 1).abs()
            <= CONSISTENT
        ),
        {"synthetic rows of a capped H100": table.height - real.height},
    )


def _names(table: pl.DataFrame, column: str, known: dict[str, str], path: Path) -> np.ndarray:
    names = table[column].to_list()
    for name in names:
        if name not in known:
            raise SpecError(f"{column} {name!r} is none of {', '.join(known)}; drop its rows", file=path)
    return np.array([known[name] for name in names])


def read_splitwise_steps(path: Path) -> StepRows:
    """Return the prefill and decode steps.

    Raises
    ------
    SpecError
        If the file is not the published table.

    Notes
    -----
    A batch that ran longer than its prompts and tokens explain was split (the KV cache did not hold it), and one that ran
    shorter ended early: its tokens saw contexts other than the shape says. Both are left out. Decode steps take the
    context halfway through the output.
    """
    table, left_out = _measured(path)
    whole = table.filter("whole")
    prompts = whole.group_by(["model", "hardware", "tensor_parallel", "prompt_size", "batch_size"]).median().sort(SHAPE[:5])
    left_out["batches that were split or ended early"] = table.height - whole.height
    decode_context = whole["prompt_size"].to_numpy() + whole["token_size"].to_numpy() / 2

    def both(column: str) -> np.ndarray:
        return np.concatenate([prompts[column].to_numpy(), whole[column].to_numpy()])

    num_prompts, num_decodes = prompts.height, whole.height
    return StepRows(
        kind=np.array(["prefill"] * num_prompts + ["decode"] * num_decodes),
        llm=np.concatenate([_names(part, "model", LLMS, path) for part in (prompts, whole)]),
        gpu=np.concatenate([_names(part, "hardware", GPUS, path) for part in (prompts, whole)]),
        engine=np.array([ENGINE] * (num_prompts + num_decodes)),
        tp=both("tensor_parallel").astype(np.int64),
        sequences=both("batch_size").astype(np.float64),
        new_tokens=np.concatenate([prompts["prompt_size"].to_numpy().astype(np.float64), np.ones(num_decodes)]),
        context_tokens=np.concatenate([np.zeros(num_prompts), decode_context]),
        seconds=np.concatenate([prompts["prompt_time"].to_numpy(), whole["token_time"].to_numpy()]),
        source=SOURCE,
        left_out=left_out,
    )


def read_splitwise_runs(path: Path) -> RunRows:
    """Return the runs whose power was recorded whole: A100 only.

    Raises
    ------
    SpecError
        If the file is not the published table.

    Notes
    -----
    A power of 0 means that none was recorded. Where more prompt tokens come with a mean power below that of the shortest
    prompt by more than `POWER_SLACK`, the window of the meter took in idle time, and the run is left out.
    """
    import polars as pl

    table, left_out = _measured(path)
    recorded = table.filter(pl.col("average_power") > 0)
    left_out["runs without a recorded power"] = table.height - recorded.height
    group = ["model", "hardware", "tensor_parallel"]
    shortest = pl.col("average_power").sort_by("batch_size", "prompt_size").first().over(group)
    sound = recorded.filter(pl.col("average_power") >= (1 - POWER_SLACK) * shortest)
    left_out["runs whose mean power lies below that of both phases"] = recorded.height - sound.height
    return RunRows(
        llm=_names(sound, "model", LLMS, path),
        gpu=_names(sound, "hardware", GPUS, path),
        engine=np.array([ENGINE] * sound.height),
        tp=sound["tensor_parallel"].to_numpy().astype(np.int64),
        sequences=sound["batch_size"].to_numpy().astype(np.float64),
        prompt_tokens=sound["prompt_size"].to_numpy().astype(np.float64),
        output_tokens=sound["token_size"].to_numpy().astype(np.float64),
        seconds=sound["e2e_time"].to_numpy(),
        prefill_s=sound["prompt_time"].to_numpy(),
        power_share=sound["average_power"].to_numpy(),
        source=SOURCE,
        left_out=left_out,
    )
