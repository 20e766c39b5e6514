"""Fit overheads of engines, power laws and the A40 to published steps: ``python tests/benchmarks/calibrate_steps.py [PART ...]``.

Needs the third-party data (``OPTSCHED_DATA``). Parts: a40, a100-80gb, h100-sxm, power. The laws of operations are frozen, save on
the A40, of which only whole steps are known. Run it again whenever they change.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from optsched import catalog
from optsched.cost.estimate import decode_step, prefill_chunks
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.split import Split, split
from optsched.cost.step_cases import run_cases
from optsched.cost.step_fit import Free, StepCase, fit_steps
from optsched.cost.step_tables import HELDOUT_LLMS, fit_engine, fit_record, llm_of, read_tables
from optsched.cost.tables import replica_parameters
from optsched.cost.tier import TierParameters, link_of
from optsched.domain.fit import Fit
from optsched.domain.hardware import Tier
from optsched.domain.overheads import Overheads
from optsched.profiles import conserve_a40 as a40
from optsched.profiles.splitwise import read_splitwise_runs
from optsched.profiles.steps import StepRows
from optsched.tier_file import with_tables

ROOT = Path(__file__).resolve().parents[2]
# Too far off on the held-out llm to be offered; its errors are printed.
NOT_SHIPPED = ("distserve-vllm",)
POWER = {
    "power.active": Free(0.15, 0.5, high=1.0),
    "power.gemm": Free(1.3, 0.5),
    "power.attention": Free(2.0, 0.5),
    "power.memory": Free(0.8, 0.5),
    "power.clock_linear": Free(0.7, 0.3, high=1.0),
    "power.clock_exponent": Free(8.0, 0.5, low=1.0, high=16.0),
    "power.sharpness": Free(8.0, 0.3, low=1.0, high=20.0),
}
A40 = {
    "gemm.compute": Free(0.36, 0.3, high=1.0),
    "prefill_attention.compute": Free(0.56, 0.3, high=1.0),
    "decode_attention.memory": Free(0.86, 0.1, high=1.0),
    "layer_overhead_s": Free(4.35e-4, 0.2),
    "step_overhead_s": Free(2e-3, 0.2),
    "sequence_overhead_s": Free(1.5e-5, 0.2),
}


@cache
def replica(llm: str, gpu: str, tp: int, engine: str) -> tuple[TierParameters, LlmShape]:
    """Return the parameters of a replica; an engine that the gpu's file lacks yet has the default overheads and the cliff."""
    card, shape = catalog.gpu(gpu), llm_of(llm)
    tier = Tier(card, card.datasheet.power_w, engine if engine in card.efficiency.engines else None)
    return TierParameters.of(tier, shape, link_of(tier, None, tp), tp=tp), LlmShape.of(shape, Layout(tp))


def data() -> Path:
    """Return the folder of third-party data."""
    return Path(os.environ["OPTSCHED_DATA"]) / "profiles"


def tables(gpu: str) -> dict[str, StepRows]:
    """Return the published steps on a gpu by engine."""
    profiles = [data() / "distserve" / f"profiler-a100-80g.{file}.json" for file in ("distserve", "vllm")]
    return read_tables(catalog.gpu(gpu), [data() / "splitwise" / "perf_model.csv", *profiles])


def errors(predicted: Sequence[float], measured: Sequence[float]) -> np.ndarray:
    """Return absolute relative errors."""
    return np.abs(np.asarray(predicted) / np.asarray(measured) - 1)


def today() -> str:
    """Return the date of a fit."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def write(gpu: str, records: Mapping[str, object], numbers: Mapping[str, str] | None = None) -> None:
    """Replace tables, and numbers of the [efficiency] table, in a gpu's file."""
    path = ROOT / "models" / "gpus" / f"{gpu}.toml"
    text = with_tables(path.read_text(), {f"efficiency.{name}": each for name, each in records.items()})
    for name, value in (numbers or {}).items():
        text = re.sub(rf"^{name} = .*$", f'{name} = "{value}"', text, count=1, flags=re.MULTILINE)
    path.write_text(text)


def fit_engines(gpu: str) -> dict[str, Overheads]:
    """Fit the overheads of every engine that was measured on a gpu."""
    fitted = {}
    for engine, rows in tables(gpu).items():
        overheads, found, parts = fit_engine(catalog.gpu(gpu), engine, rows, today())
        report(f"{gpu} {engine}", rows, found.seconds, parts)
        if engine not in NOT_SHIPPED:
            fitted[engine] = overheads
    return fitted


def report(title: str, rows: StepRows, predicted: np.ndarray, parts: Split) -> None:
    """Print mean errors by kind of step and by part of the split."""
    wrong = errors(predicted, rows.seconds)
    for kind in ("prefill", "decode"):
        for name in ("train", "heldout_shapes", "heldout_llms"):
            chosen = (rows.kind == kind) & getattr(parts, name)
            if chosen.any():
                print(f"{title:32s} {kind:8s} {name:15s} {chosen.sum():3d} rows {wrong[chosen].mean():6.1%}")


def calibrate_engines(gpu: str) -> None:
    """Write the engines of a gpu; the 2023 vLLM runs launched kernel by kernel, so they stand for eager engines too."""
    fitted = fit_engines(gpu)
    eager = fitted["splitwise-vllm"]
    note = f"As splitwise-vllm, without its slow messages: launched without CUDA graphs. {eager.source}"
    plain = Overheads(
        source=note,
        layer_overhead_s=eager.layer_overhead_s,
        prefill_layer_overhead_s=eager.prefill_layer_overhead_s,
        step_overhead_s=eager.step_overhead_s,
        sequence_overhead_s=eager.sequence_overhead_s,
    )
    write(gpu, {f"engines.{name}": each for name, each in {**fitted, "eager": plain}.items()})
    if gpu == "a100-80gb":
        write("a100-40gb", {"engines.eager": plain.replace(source=f"{note} (A100-80GB: the same chip)")})


def calibrate_power() -> None:
    """Fit the power law of A100 to Splitwise's runs of Llama-2-70B; BLOOM and a fifth of the shapes are held out."""
    rows = read_splitwise_runs(data() / "splitwise" / "perf_model.csv")
    parts = split(rows.keys(), np.isin(rows.llm, HELDOUT_LLMS))
    cases = run_cases(rows, replica, lambda gpu: catalog.gpu(gpu).datasheet.power_w)
    free = {name: each for name, each in POWER.items() if name not in ("power.clock_linear", "power.clock_exponent")}
    found = fit_steps(cases, free, parts.train)
    measured = rows.power_share * catalog.gpu("a100-80gb").datasheet.power_w
    wrong = errors(found.watts, measured)
    energy = errors(found.watts * found.seconds, measured * rows.seconds)
    for name in ("train", "heldout_shapes", "heldout_llms"):
        chosen = getattr(parts, name)
        print(f"power of runs {name:15s} {chosen.sum():3d} rows {wrong[chosen].mean():6.1%}, energy {energy[chosen].mean():6.1%}")
    fit = fit_record(rows.source, today(), found, tuple(free), wrong, parts, rows.left_out)
    law = catalog.gpu("a100-80gb").efficiency.power.replace(
        **{name.rpartition(".")[2]: float(f"{value:.6g}") for name, value in found.values.items()}, fit=fit
    )
    for gpu in ("a100-80gb", "a100-40gb"):
        write(gpu, {"power": law})
    print(law)


def a40_cases() -> tuple[list[str], list[StepCase], np.ndarray, np.ndarray]:
    """Return names, cases, which to fit to, and the errors expected of their powers."""
    llm = catalog.llm(a40.LLM)
    tiers = {cap: replica_parameters(llm, Tier(catalog.gpu(a40.GPU), float(cap))) for cap in (300, 200)}
    names, cases, train, watts = [], [], [], []

    def add(name: str, cap: int, steps: object, fitted: bool, **measured: float) -> None:
        names.append(name)
        cases.append(StepCase(*tiers[cap], steps, np.ones(len(np.asarray(steps.pairs))), **measured))  # type: ignore[attr-defined,arg-type]
        train.append(fitted)

    for cap, prompts in a40.PREFILL_S.items():
        for tokens, seconds in prompts.items():
            steps = prefill_chunks(llm, tokens, a40.CHUNK_TOKENS)
            add(f"prefill {tokens} at {cap} W", cap, steps, tokens in a40.FITTED_PROMPTS[cap], seconds=seconds)
    for (batch, kv), seconds in a40.DECODE_S.items():
        steps = decode_step(llm, batch, kv // batch).rows()
        add(f"decode {kv}", 300, steps, (batch, kv) in a40.FITTED_DECODES, seconds=seconds)
    for (batch, kv), seconds in a40.CAPPED_DECODE_S.items():
        add(f"decode {kv} at 200 W", 200, decode_step(llm, batch, kv // batch).rows(), True, seconds=seconds)
    watts = [0.03] * len(names)
    for cap, power in a40.LOADED_DECODER_W.items():
        batch, kv = a40.LOADED_KV_TOKENS
        add(f"loaded decoder at {cap} W", cap, decode_step(llm, batch, kv // batch).rows(), True, watts=power)
        watts.append(0.03)
    batch, kv = a40.LIGHT_KV_TOKENS
    add("light decoder at 300 W", 300, decode_step(llm, batch, kv // batch).rows(), True, watts=a40.LIGHT_DECODER_W)
    return names, cases, np.array(train), np.array([*watts, 0.1])


def calibrate_a40() -> None:
    """Fit the A40 to half of what the ConServe artifact measured."""
    names, cases, train, watts_error = a40_cases()
    free = {**A40, **POWER}
    # The penalty of a cap is a ratio of two runs, known better than either time.
    seconds_error = np.array([0.005 if name.startswith("decode") and name.endswith("200 W") else 0.02 for name in names])
    found = fit_steps(cases, free, train, seconds_error=seconds_error, watts_error=watts_error)
    timed = np.array([case.seconds is not None for case in cases])
    measured = np.array([case.seconds or case.watts or 0.0 for case in cases])
    predicted = np.where(timed, found.seconds, found.watts)
    for name, is_fitted, one, other in zip(names, train, measured, predicted, strict=True):
        print(f"{name:26s} {'fitted' if is_fitted else 'held out':9s} {one:8.4g} {other:8.4g} {other / one - 1:+6.1%}")
    wrong = errors(predicted, measured)
    parts = Split(train, ~train, np.zeros(len(train), bool))

    def fit(prefix: str) -> Fit:
        return fit_record(a40.SOURCE, today(), found, [name for name in free if name.startswith(prefix)], wrong, parts, {})

    values = {name: float(f"{value:.6g}") for name, value in found.values.items()}
    laws = catalog.gpu("a40").efficiency
    power = {name.rpartition(".")[2]: value for name, value in values.items() if name.startswith("power.")}
    records = {
        "gemm.bf16": laws.gemm_law("bf16").replace(compute=values["gemm.compute"], fit=fit("gemm.")),
        "prefill_attention.bf16": laws.prefill_attention_law("bf16").replace(
            compute=values["prefill_attention.compute"], fit=fit("prefill_attention.")
        ),
        "decode_attention.bf16": laws.decode_attention_law("bf16").replace(
            memory=values["decode_attention.memory"], fit=fit("decode_attention.")
        ),
        "power": laws.power.replace(**power, fit=fit("power.")),
    }
    numbers = {name: f"{values[name] * 1e6:.5g} us" for name in A40 if name.endswith("overhead_s")}
    write("a40", records, numbers)


if __name__ == "__main__":
    for part in sys.argv[1:] or ("a40", "a100-80gb", "h100-sxm", "power"):
        {"a40": calibrate_a40, "power": calibrate_power}.get(part, lambda part=part: calibrate_engines(part))()
