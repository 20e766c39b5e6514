"""Sample the step times that DistServe fitted on A100-80GB (JSON; github.com/LLMServe/DistServe).

The files hold coefficients, not measurements: prefill ``a + b sum n + c sum n^2`` and decode ``a + b sum context + c batch``
in milliseconds, the latter with one set below and one from a batch size on. They are evaluated on a fixed grid within the
cache that the llm leaves.

References
----------
Zhong et al., "DistServe", OSDI 2024, arXiv 2401.09670; simdistserve/estimators/profile_data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from optsched.errors import SpecError
from optsched.profiles.steps import Kind, StepRows

SOURCE = "Formulas fitted by DistServe on A100-80GB (github.com/LLMServe/DistServe, simdistserve; arXiv 2401.09670)"
GPU = "a100-80gb"
LLMS = {"facebook/opt-13b": "opt-13b", "facebook/opt-66b": "opt-66b", "facebook/opt-175b": "opt-175b"}
ENGINES = {"distserve": "distserve", "vllm": "distserve-vllm"}

# Of the formulas of one llm and tensor parallelism.
KEYS = ("prefill", "decoding_smallbs", "decoding_largebs", "decoding_large_small_bs_threshold")
PREFILL = tuple(product((1, 4), (128, 256, 512, 1024, 2048)))
DECODE = tuple(product((1, 8, 32, 64, 128), (128, 512, 1024, 2048)))

Row = tuple[Kind, str, int, float, float, float, float]


def read_distserve_steps(path: Path, kv_token_budgets: Mapping[tuple[str, int], int]) -> StepRows:
    """Return the formulas' times on a grid of steps.

    Parameters
    ----------
    path
        ``profiler-a100-80g.distserve.json`` or ``profiler-a100-80g.vllm.json``.
    kv_token_budgets
        Cached tokens that fit, by llm and tp: the formulas say nothing beyond. Other llms and tp are left out.

    Raises
    ------
    SpecError
        If the file is not one of the published ones.
    """
    engine = ENGINES.get(path.name.split(".")[-2] if path.name.count(".") > 1 else "")
    if engine is None:
        raise SpecError(f"the name must end in {' or '.join(f'.{n}.json' for n in ENGINES)}; keep the published name", file=path)
    try:
        profiles = json.loads(path.read_text(encoding="utf-8"))
        rows: list[Row] = []
        beyond = unsound = 0
        for row in _rows(profiles):
            _, llm, tp, sequences, new, context, seconds = row
            fits = sequences * (new + context) <= kv_token_budgets.get((llm, tp), 0)
            beyond += not fits
            unsound += fits and seconds <= 0
            rows += [row] if fits and seconds > 0 else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SpecError(f"{error!r} while reading the profile; give the file as published", file=path) from error
    columns = [np.array([row[index] for row in rows]) for index in range(7)]
    return StepRows(
        kind=columns[0],
        llm=columns[1],
        gpu=np.array([GPU] * len(rows)),
        engine=np.array([engine] * len(rows)),
        tp=columns[2].astype(np.int64),
        sequences=columns[3].astype(np.float64),
        new_tokens=columns[4].astype(np.float64),
        context_tokens=columns[5].astype(np.float64),
        seconds=columns[6].astype(np.float64),
        source=SOURCE,
        left_out={"steps beyond the cache of the replica": beyond, "steps with a formula below zero": unsound},
    )


def _rows(profiles: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Iterator[Row]:
    for name, layouts in profiles.items():
        for tp, profile in layouts.items():
            constant, linear, square = profile["prefill"]
            for batch, new in PREFILL:
                seconds = (constant + linear * batch * new + square * batch * new**2) / 1e3
                yield "prefill", LLMS[name], int(tp), batch, new, 0.0, seconds
            threshold = float(np.asarray(profile["decoding_large_small_bs_threshold"]))
            for batch, context in DECODE:
                constant, cached, sequence = profile["decoding_smallbs" if batch < threshold else "decoding_largebs"]
                yield (
                    "decode",
                    LLMS[name],
                    int(tp),
                    batch,
                    1.0,
                    context,
                    (constant + cached * batch * context + sequence * batch) / 1e3,
                )
