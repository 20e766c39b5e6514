"""Fit the overheads of serving engines on a gpu to whole steps that others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import equinox as eqx
import numpy as np

from optsched import catalog
from optsched.cost.memory import kv_token_budget
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.split import Split, split
from optsched.cost.step_cases import Replica, step_cases
from optsched.cost.step_fit import FittedSteps, Free, fit_steps
from optsched.cost.tier import TierParameters, link_of
from optsched.domain.fit import Fit
from optsched.domain.hardware import Gpu, Tier
from optsched.domain.llm import Llm
from optsched.domain.overheads import Overheads
from optsched.errors import InfeasibleError, ProblemError, SpecError
from optsched.profiles import distserve, splitwise
from optsched.profiles.rows import joined
from optsched.profiles.steps import StepRows

TABLE_COLUMNS = (frozenset(splitwise.COLUMNS), frozenset(distserve.KEYS))
# Chosen before any fit: the large llm of either source that is not the one most of its steps are of.
HELDOUT_LLMS = ("bloom-176b", "opt-66b")
ERRORS = {"prefill": 0.06, "decode": 0.03}  # expected of the rows
FREE = {
    "layer_overhead_s": Free(4e-4, 1.0),
    "prefill_layer_overhead_s": Free(1e-4, 1.0),
    "step_overhead_s": Free(5e-3, 0.7),
    "sequence_overhead_s": Free(2e-4, 1.0),
    "compute_rate": Free(0.9, 0.2, high=1.0),
    "message_overhead_s": Free(1e-5, 0.7),
}
SLOW = {"slow_message_s_per_byte": Free(3e-11, 1.0)}
# Read off all rows of Splitwise: an all-reduce of 58.7 MB (BLOOM, 2,048 tokens) is fast and one of 67.1 MB is not.
SLOW_MESSAGE_BYTES = {splitwise.ENGINE: 62e6}


def llm_of(name: str) -> Llm:
    """Return an llm of the tables: a packaged one, or BLOOM-176B as far as costs go (huggingface.co/bigscience/bloom)."""
    if name != "bloom-176b":
        return catalog.llm(name)
    shape = {"num_layers": 70, "hidden_size": 14336, "num_heads": 112, "num_kv_heads": 112, "ffn_size": 57344}
    like = catalog.llm("opt-66b")
    return like.replace(name=name, title="BLOOM 176B", vocab_size=250_880, max_positions=2048, **shape)


def steps_split(rows: StepRows) -> Split:
    """Return which steps are fitted to, held out by their shape, or of a held-out llm."""
    return split(rows.keys(), np.isin(rows.llm, HELDOUT_LLMS))


def read_tables(gpu: Gpu, files: Sequence[Path]) -> dict[str, StepRows]:
    """Return the steps of a gpu by the engine whose overheads they include.

    Parameters
    ----------
    gpu
        Whose steps to take, and whose memory bounds the batches that formulas are asked for.
    files
        Tables with one of `TABLE_COLUMNS`.

    Raises
    ------
    SpecError
        If a table is damaged, or none has steps of this gpu.
    """
    found: dict[str, StepRows] = {}
    known: set[str] = set()
    for file in files:
        if file.suffix == ".json":
            rows, gpus = distserve.read_distserve_steps(file, _budgets(gpu)), {distserve.GPU}
        else:
            rows = splitwise.read_splitwise_steps(file)
            gpus = set(map(str, rows.gpu))
        known |= gpus
        own = rows.where(rows.gpu == gpu.name)
        for engine in sorted(set(map(str, own.engine))):
            part = own.where(own.engine == engine)
            found[engine] = joined([found[engine], part]) if engine in found else part
    if not found:
        raise SpecError(
            f"no steps of {gpu.name}, but of {', '.join(sorted(known))}; name one of these with --tier", file=files[0]
        )
    return found


def _budgets(gpu: Gpu) -> dict[tuple[str, int], int]:
    """Return the cached tokens that a replica of each llm of the formulas holds, where it fits."""
    found = {}
    for name in sorted(set(distserve.LLMS.values()) & set(catalog.llms())):
        for tp in (1, 2, 4, 8):
            try:
                found[name, tp] = kv_token_budget(catalog.llm(name), Tier(gpu, gpu.datasheet.power_w), tp=tp)
            except InfeasibleError:
                continue
    return found


def fit_engine(gpu: Gpu, engine: str, rows: StepRows, day: str) -> tuple[Overheads, FittedSteps, Split]:
    """Fit the overheads of one engine on top of a gpu's laws of operations, which stay as they are.

    Parameters
    ----------
    gpu
        With its laws.
    engine, rows
        The engine's name, and its steps on this gpu.
    day
        Date of the fit.

    Returns
    -------
    tuple
        The overheads with their `Fit`; what was fitted, with the predicted time of every row; and which rows took part.

    Raises
    ------
    ProblemError
        If all rows are held out.
    """
    parts, cliff = steps_split(rows), SLOW_MESSAGE_BYTES.get(engine)
    if not parts.train.any():
        raise ProblemError(f"all {len(rows)} steps of {engine} are held out; give steps of more llms and sizes")
    free = FREE if cliff is None else {**FREE, **SLOW}
    default = Overheads.model_fields["slow_message_bytes"].default
    cases = step_cases(rows, _replicas(gpu, default if cliff is None else cliff))
    found = fit_steps(cases, free, parts.train, seconds_error=np.array([ERRORS[str(kind)] for kind in rows.kind]))
    fit = fit_record(rows.source, day, found, tuple(free), np.abs(found.seconds / rows.seconds - 1), parts, rows.left_out)
    values = {name: float(f"{value:.6g}") for name, value in found.values.items()}
    return Overheads(source=rows.source, fit=fit, slow_message_bytes=cliff or default, **values), found, parts


def _replicas(gpu: Gpu, slow_message_bytes: float) -> Replica:
    """Return the numbers of replicas on a gpu without an engine's overheads."""

    def replica(llm: str, name: str, tp: int, engine: str) -> tuple[TierParameters, LlmShape]:
        del name, engine
        tier, shape = Tier(gpu, gpu.datasheet.power_w), llm_of(llm)
        numbers = TierParameters.of(tier, shape, link_of(tier, None, tp), tp=tp)
        numbers = eqx.tree_at(lambda each: each.slow_message_bytes, numbers, np.asarray(slow_message_bytes))
        return numbers, LlmShape.of(shape, Layout(tp))

    return replica


def fit_record(
    source: str,
    day: str,
    found: FittedSteps,
    names: Sequence[str],
    errors: np.ndarray,
    parts: Split,
    left_out: Mapping[str, int],
) -> Fit:
    """Return what a file keeps of a fit of whole steps.

    Parameters
    ----------
    source, day
        Where the rows come from, and the date.
    found, names
        What was fitted, and the coefficients that this record is of.
    errors
        Absolute relative error of each row, shape (N,).
    parts, left_out
        Which rows took part, and rows of the files that did not, by the reason.
    """
    place = [list(found.values).index(name) for name in names]

    def mean(chosen: np.ndarray) -> float | None:
        return float(f"{errors[chosen].mean():.6g}") if chosen.any() else None

    return Fit(
        source=source,
        date=day,
        num_rows=len(errors),
        rows_left_out=dict(left_out),
        train_mape=mean(parts.train) or 0.0,
        heldout_shapes_mape=mean(parts.heldout_shapes),
        heldout_llms_mape=mean(parts.heldout_llms),
        parameters=tuple(name.rpartition(".")[2] for name in names),
        covariance=tuple(tuple(float(f"{value:.4g}") for value in row) for row in found.covariance[np.ix_(place, place)]),
    )


def fit_tables(gpu: Gpu, files: Sequence[Path], day: str) -> dict[str, Overheads]:
    """Return ``engines.NAME`` for every engine that the tables have steps of.

    Parameters
    ----------
    gpu, files
        As in `read_tables`; the gpu's laws of operations are frozen.
    day
        Date of the fit.

    Raises
    ------
    SpecError
        As `read_tables`.
    ProblemError
        As `fit_engine`.
    """
    return {f"engines.{engine}": fit_engine(gpu, engine, rows, day)[0] for engine, rows in read_tables(gpu, files).items()}
