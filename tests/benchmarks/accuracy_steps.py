"""Write the sections of docs/accuracy.md on whole steps, power and energy; run with ``python tests/benchmarks/accuracy_steps.py``.

The coefficients are those of the packaged files; nothing is fitted here. Needs the third-party data (``OPTSCHED_DATA``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from calibrate_steps import data, replica, tables
from errors import fill, markdown

from optsched import catalog
from optsched.cost.estimate import decode_step, prefill_chunks
from optsched.cost.evaluate import StepCosts, evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.split import split
from optsched.cost.step_cases import decode_batch, run_cases, step_cases
from optsched.cost.step_fit import StepCase
from optsched.cost.step_tables import HELDOUT_LLMS, steps_split
from optsched.cost.tables import replica_parameters
from optsched.domain.hardware import Tier
from optsched.profiles import conserve_a40 as a40
from optsched.profiles.ml_energy import GPU, JUDGED, POINTS, ServedPoint
from optsched.profiles.splitwise import read_splitwise_runs

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "OPTSCHED_DATA=... python tests/benchmarks/accuracy_steps.py"
CONTEXT_TOKENS = 1000  # of a chat in mid-answer; the leaderboard does not publish the lengths of its prompts
PROMPT_TOKENS = (100, 700)


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def signed(share: float) -> str:
    """Return a deviation as a percentage with sign."""
    return f"{100 * share:+.1f} %"


def a40_costs(cap_w: float, steps: StepFeatures) -> StepCosts:
    """Return the costs of steps of the artifact's llm on an A40 under a cap."""
    return evaluate_steps(*replica_parameters(catalog.llm(a40.LLM), Tier(catalog.gpu(a40.GPU), cap_w)), steps.rows())


def a40_prefill(cap_w: float, tokens: int) -> float:
    """Return the modelled time of a cold prefill on A40."""
    return float(a40_costs(cap_w, prefill_chunks(catalog.llm(a40.LLM), tokens, a40.CHUNK_TOKENS)).seconds.sum())


def prefill_table() -> str:
    """Return cold prefills on A40 beside the model's, and which were fitted to; 250 W is nowhere measured."""
    rows = []
    for cap_w, prompts in a40.PREFILL_S.items():
        for tokens, seconds in prompts.items():
            found = a40_prefill(cap_w, tokens)
            part = "fitted" if tokens in a40.FITTED_PROMPTS[cap_w] else "held out"
            rows.append([f"{tokens:,}", f"{cap_w} W", part, f"{seconds:.2f} s", f"{found:.2f} s", signed(found / seconds - 1)])
    for tokens in (8000, 16000, 32000, 65000):
        rows.append([f"{tokens:,}", "250 W", "assumed", "-", f"{a40_prefill(250, tokens):.2f} s", "-"])
    return markdown(["prompt tokens", "cap", "part", "measured", "model", "error"], rows)


def penalty_table() -> str:
    """Return what 200 W cost a prefill: by the artifact's times, by its figure, and in the model."""
    rows = []
    for tokens in (4000, 8000, 12000, 16000, 20000, 32000, 65000):
        times = [a40.PREFILL_S[cap].get(tokens) for cap in (200, 300)]
        by_time = signed(times[0] / times[1] - 1) if times[0] and times[1] else "-"
        in_figure = a40.PENALTY_IN_FIGURE.get(tokens)
        model = signed(a40_prefill(200, tokens) / a40_prefill(300, tokens) - 1)
        rows.append([f"{tokens:,}", by_time, "-" if in_figure is None else signed(in_figure), model])
    return markdown(["prompt tokens", "by times (fitted to)", "in the figure", "model"], rows)


def decode_table() -> str:
    """Return decode steps on A40 beside the model's."""
    rows = []
    for (batch, kv), seconds in a40.DECODE_S.items():
        found = float(a40_costs(300, decode_step(catalog.llm(a40.LLM), batch, kv // batch)).seconds[0])
        part = "fitted" if (batch, kv) in a40.FITTED_DECODES else "held out"
        rows.append(
            [f"{kv:,}", str(batch), part, f"{1e3 * seconds:.1f} ms", f"{1e3 * found:.1f} ms", signed(found / seconds - 1)]
        )
    return markdown(["KV tokens in the batch", "batch in the model", "part", "measured", "model", "error"], rows)


def a40_power_table() -> str:
    """Return powers of decoders on A40 beside those worked back from the artifact's energies."""
    cases = [(f"loaded decoder, cap {cap} W", cap, a40.LOADED_KV_TOKENS, watts) for cap, watts in a40.LOADED_DECODER_W.items()]
    cases.append(("lightly loaded decoder, cap 300 W", 300, a40.LIGHT_KV_TOKENS, a40.LIGHT_DECODER_W))
    rows = []
    for name, cap, (batch, kv), watts in cases:
        costs = a40_costs(cap, decode_step(catalog.llm(a40.LLM), batch, kv // batch))
        found = float(costs.joules[0] / costs.seconds[0])
        rows.append([name, f"{watts:.0f} W", f"{found:.0f} W", signed(found / watts - 1)])
    return markdown(["state", "worked back", "model", "error"], rows)


def costs_of(cases: list[StepCase]) -> tuple[np.ndarray, np.ndarray]:
    """Return modelled seconds, and joules of one GPU, of each case."""
    seconds, joules = [], []
    for case in cases:
        costs = evaluate_steps(case.tier, case.shape, case.steps)
        seconds.append(float(costs.seconds @ case.repeats))
        joules.append(float(costs.joules @ case.repeats / (case.shape.tp * case.shape.pp)))
    return np.array(seconds), np.array(joules)


def engines_table() -> str:
    """Return the errors of whole steps by gpu, engine, kind of step and part of the split."""
    rows = []
    for gpu in ("a100-80gb", "h100-sxm"):
        for engine, found in tables(gpu).items():
            parts, (seconds, _) = steps_split(found), costs_of(step_cases(found, replica))
            error = seconds / found.seconds - 1
            for kind in ("prefill", "decode"):
                for name, title in (("train", "fitted"), ("heldout_shapes", "held-out shapes"), ("heldout_llms", "held-out llm")):
                    chosen = (found.kind == kind) & getattr(parts, name)
                    if chosen.any() and engine in catalog.gpu(gpu).efficiency.engines:
                        size = np.abs(error[chosen])
                        cells = [str(chosen.sum()), percent(size.mean()), signed(error[chosen].mean()), percent(size.max())]
                        rows.append([gpu, engine, kind, title, *cells])
    return markdown(["gpu", "engine", "step", "part", "rows", "MAPE", "bias", "largest"], rows)


def runs_table() -> str:
    """Return the errors of power and energy of Splitwise's runs on A100."""
    found = read_splitwise_runs(data() / "splitwise" / "perf_model.csv")
    board_w = catalog.gpu("a100-80gb").datasheet.power_w
    parts = split(found.keys(), np.isin(found.llm, HELDOUT_LLMS))
    seconds, joules = costs_of(run_cases(found, replica, lambda gpu: board_w))
    watts, energy = found.power_share * board_w, found.power_share * board_w * found.seconds
    rows = []
    for name, title in (("train", "fitted"), ("heldout_shapes", "held-out shapes"), ("heldout_llms", "held-out llm")):
        chosen = getattr(parts, name)
        power_error, energy_error = np.abs(joules / seconds / watts - 1)[chosen], np.abs(joules / energy - 1)[chosen]
        figures = [percent(each) for each in (power_error.mean(), power_error.max(), energy_error.mean(), energy_error.max())]
        rows.append([title, str(chosen.sum()), *figures])
    return markdown(["part", "runs", "power, MAPE", "largest", "energy, MAPE", "largest"], rows)


def served_table() -> str:
    """Return power and token gap of a decode step on H100 beside what the leaderboard measured."""
    rows = []
    for point in POINTS:
        parameters, shape = replica_parameters(catalog.llm(point.llm), catalog.tier(GPU), tp=point.tp)
        costs = evaluate_steps(parameters, shape, decode_batch(point.batch, CONTEXT_TOKENS))
        gap_s, watts = float(costs.seconds[0]), float(costs.joules[0] / costs.seconds[0])
        judged = "**" if point in JUDGED else ""
        power = [f"{point.watts:,.0f} W", f"{watts:,.0f} W", f"{judged}{signed(watts / point.watts - 1)}{judged}"]
        gap = [f"{1e3 * point.gap_s:.1f} ms", f"{1e3 * gap_s:.1f} ms", signed(gap_s / point.gap_s - 1)]
        rows.append([f"{point.llm}, tp {point.tp}", f"{point.batch:.0f}", *power, *gap])
    return markdown(["llm", "batch", "measured", "model", "error", "gap measured", "model", "error"], rows)


def simulated(point: ServedPoint, folder: Path) -> tuple[float, float]:
    """Return joules per output token and mean watts of a simulated server that is kept at a point's batch."""
    workload = {
        "schema": '"optsched/workload"', "version": "1", "name": '"chat"', "title": '"chat"', "origin": '"assumed"',
    }  # fmt: skip
    turn = {"new_tokens": PROMPT_TOKENS, "output_tokens": (2, 2 * point.output_tokens - 2)}
    lines = [f"{key} = {value}" for key, value in workload.items()]
    lines += ["[[turn]]", *(f"{key} = {{ quantiles = [[0, {low}], [1, {high}]] }}" for key, (low, high) in turn.items())]
    (folder / "chat.toml").write_text("\n".join(lines))
    (folder / "scenario.toml").write_text(f"""
schema = "optsched/scenario"
version = 1
llm = "{point.llm}"
[workload]
source = "{folder / "chat.toml"}"
conversations = 1024
arrivals = {{ process = "poisson", rate_per_s = 1000, seed = 42 }}
[supply]
"{GPU}" = {{ count = {point.tp} }}
[[fleet]]
gpu = "{GPU}"
role = "mixed"
count = 1
tp = {point.tp}
[slo]
ttft = {{ percentile = 95, seconds = 1000 }}
[objective]
minimise = "energy"
[engine]
max_batched_tokens = 8192
max_sequences = {round(point.batch)}
[policy]
batching = "vllm-chunked"
placement = "collocated"
""")
    command = [str(Path(sys.executable).with_name("optsched")), "simulate", str(folder / "scenario.toml"), "--json"]
    metrics = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["metrics"]
    return metrics["energy_j"] / metrics["tokens"]["output"], metrics["energy_j"] / metrics["makespan_s"]


def simulated_table() -> str:
    """Return energies per token of simulated servers beside the leaderboard's."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for point in JUDGED:
            joules, watts = simulated(point, Path(folder))
            energy = [f"{point.j_per_token:.3f} J", f"{joules:.3f} J", signed(joules / point.j_per_token - 1)]
            power = [f"{point.watts:,.0f} W", f"{watts:,.0f} W", signed(watts / point.watts - 1)]
            rows.append([f"{point.llm}, tp {point.tp}, batch {point.batch:.0f}", *energy, *power])
    return markdown(["server", "per token", "simulated", "error", "power", "simulated", "error"], rows)


def main() -> None:
    """Replace what stands between the markers."""
    makers = {
        "a40-prefill": prefill_table, "a40-penalty": penalty_table, "a40-decode": decode_table, "a40-power": a40_power_table,
        "engines": engines_table, "runs": runs_table, "served": served_table, "simulated": simulated_table,
    }  # fmt: skip
    fill(ROOT / "docs" / "accuracy.md", {name: make() for name, make in makers.items()}, COMMAND)


if __name__ == "__main__":
    main()
