"""Write the section of docs/accuracy.md on a whole server; run with ``python tests/benchmarks/accuracy_engine.py``.

The workload of a published vLLM run is simulated and compared with what the server did; nothing was fitted to that run.
Needs the third-party data (``OPTSCHED_DATA``).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from errors import fill, markdown

from optsched.domain.log import ExecutionLog
from optsched.domain.scenario import Scenario
from optsched.domain.workload import Workload
from optsched.planner.plan import plan_scenario
from optsched.profiles.vllm_run import VllmRun, read_vllm_run

RUN = "bench_vllm/RTXPRO6000/Llama-3.1-8B/vllm"
COMMAND = "OPTSCHED_DATA=... python tests/benchmarks/accuracy_engine.py"
FIGURES = {
    "mean": np.mean,
    "median": np.median,
    "p95": lambda values: np.percentile(values, 95),
    "p99": lambda values: np.percentile(values, 99),
}


def replay(folder: Path) -> tuple[ExecutionLog, Workload]:
    """Simulate the run's requests at their recorded times under the settings that its meta.json tells."""
    scenario = Scenario(
        llm="llama-3.1-8b",
        workload={"source": str(folder / "requests.jsonl"), "arrivals": {"process": "trace"}},
        supply={"rtx-pro-6000": {"count": 1}},
        engine={"max_batched_tokens": 2048, "max_sequences": 128},
        policy={
            "batching": "vllm-chunked", "placement": "collocated", "placement_parameters": {"oracle": 0, "admission": 0},
        },
        objective={"minimise": "ttfet"},
    )  # fmt: skip
    planned = plan_scenario(scenario)
    return planned.log, planned.workload


def latencies(log: ExecutionLog, workload: Workload) -> dict[str, np.ndarray]:
    """Return the simulated latencies by the names of `VllmRun`'s."""
    return {
        "ttft_s": log.first_token_s - log.arrival_s,
        "tpot_s": (log.end_s - log.first_token_s) / np.maximum(workload.output_tokens - 1, 1),
        "e2e_s": log.end_s - log.arrival_s,
    }


def errors(run: VllmRun, log: ExecutionLog, workload: Workload) -> dict[tuple[str, str], float]:
    """Return the relative error of each figure of each latency."""
    simulated = latencies(log, workload)
    return {
        (name, figure): float(of(simulated[name]) / of(getattr(run, name)) - 1)
        for name in simulated
        for figure, of in FIGURES.items()
    }


def crowd(run: VllmRun, log: ExecutionLog) -> dict[str, tuple[float, float, float]]:
    """Return the mean observed, the mean simulated and their mean absolute difference of running and waiting requests."""
    at = run.time_s[:, None]
    running = ((log.start_s <= at) & (at < log.end_s)).sum(axis=1)
    waiting = ((log.arrival_s <= at) & (at < log.start_s)).sum(axis=1)
    found = {"running": (run.running, running), "waiting": (run.waiting, waiting)}
    return {
        name: (float(seen.mean()), float(said.mean()), float(np.abs(seen - said).mean())) for name, (seen, said) in found.items()
    }


def main() -> None:
    """Fill the section's tables."""
    folder = Path(os.environ["OPTSCHED_DATA"]) / RUN
    run, (log, workload) = read_vllm_run(folder), replay(folder)
    simulated, found = latencies(log, workload), errors(run, log, workload)
    rows = [
        [f"{name.removesuffix('_s').upper()}, {figure}", f"{of(getattr(run, name)):.4g} s", f"{of(simulated[name]):.4g} s",
         f"{100 * found[name, figure]:+.1f} %"]
        for name in simulated
        for figure, of in FIGURES.items()
    ]  # fmt: skip
    off = log.makespan_s / run.makespan_s - 1
    rows.append(["makespan", f"{run.makespan_s:.2f} s", f"{log.makespan_s:.2f} s", f"{100 * off:+.1f} %"])
    rows += [
        [f"{name}, mean over time", f"{seen:.1f}", f"{said:.1f}", f"{apart:.1f} apart at each second"]
        for name, (seen, said, apart) in crowd(run, log).items()
    ]
    page = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"
    fill(page, {"vllm-run": markdown(["figure", "measured", "simulated", "error"], rows)}, COMMAND)


if __name__ == "__main__":
    main()
