"""Write docs/accuracy.md's section on closed loops; run with ``python tests/benchmarks/accuracy_closed_loops.py``.

Servers of dense llms on H100 and H200, kept at a number of requests in flight, are simulated and compared with what was
measured. What is set per engine comes from its documentation and the published scripts; nothing was fitted to these rows.
Needs aiconfigurator-core's tables (``OPTSCHED_AICONFIGURATOR``, the folder ``systems/data``; the file lies beside it).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from errors import fill, markdown

from optsched import catalog
from optsched.domain.plan import Plan, PlanLlm, PlanReplica
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.domain.workload import Workload
from optsched.planner.plan import plan_scenario
from optsched.planner.replicas import make_replica
from optsched.profiles.closed_loops import ClosedLoop, read_closed_loops
from optsched.simulator.simulate import simulate

COMMAND = "OPTSCHED_AICONFIGURATOR=... python tests/benchmarks/accuracy_closed_loops.py"
REQUESTS = 10  # per request in flight: InferenceMAX's client; assumed of the other one
# vllm serve and trtllm-serve: max-num-batched-tokens 8,192 on these cards; SGLang: chunked-prefill-size 8,192.
MOST_TOKENS = 8192
BLOCK_TOKENS = 16
TTFT_LIMIT, TPOT_LIMIT = 0.25, 0.12


def silicon_sample() -> Path:
    """Return the file's place beside the tables.

    Raises
    ------
    KeyError
        If ``OPTSCHED_AICONFIGURATOR`` is not set.
    """
    return Path(os.environ["OPTSCHED_AICONFIGURATOR"]).parent / "silicon_sample.csv"


def lengths(loop: ClosedLoop) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of prompts and outputs that the client sent."""
    nominal, count = (loop.prompt_tokens, loop.output_tokens), REQUESTS * loop.concurrency
    if not loop.inferencemax:
        return np.full(count, nominal[0]), np.full(count, nominal[1])
    random = np.random.default_rng(0)
    prompts, outputs = (random.integers(int(0.8 * tokens), tokens + 1, count) for tokens in nominal)
    return prompts, outputs


def hides_host(loop: ClosedLoop) -> bool:
    """Tell whether the engine prepares a step while the one before it runs, so that no time passes between steps.

    TensorRT-LLM's overlap scheduler and SGLang's are on by default (their documentation: ``disable_overlap_scheduler``,
    ``--disable-overlap-schedule``); vLLM's is off up to 0.13, and InferenceMAX's scripts switch it on (``async-scheduling``).
    """
    return loop.engine != "vllm" or loop.inferencemax


@lru_cache(maxsize=256)
def replica_of(llm: str, gpu: str, tp: int, dtype: str, narrow_cache: bool) -> tuple[PlanReplica, PlanLlm]:
    """Return a replica that serves an llm, and the llm as it is stored there."""
    shape = catalog.llm(llm)
    if dtype == "fp8":
        shape = shape.replace(dtype="fp8", kv_dtype="fp8" if narrow_cache else "bf16")
    return make_replica(shape, FleetEntry(gpu=gpu, role="mixed", tp=tp), "server", BLOCK_TOKENS), PlanLlm(name=llm, shape=shape)


@lru_cache(maxsize=1)
def pattern() -> Plan:
    """Return a plan of one replica, whose contents are then replaced."""
    scenario = Scenario(
        llm="llama-3.1-8b",
        workload={"source": "azure-conversation", "conversations": 2, "arrivals": {"process": "burst"}},
        supply={"h100-sxm": {"count": 1}},
        policy={
            "batching": "vllm-chunked", "placement": "collocated", "placement_parameters": {"oracle": 0, "admission": 0},
        },
        objective={"minimise": "ttfet"},
    )  # fmt: skip
    return plan_scenario(scenario).plan


def plan_of(loop: ClosedLoop) -> Plan:
    """Return the server of a row.

    SGLang computes prompts before it decodes, the others do both in one step. FP8 servers keep an FP8 cache where InferenceMAX's
    scripts say so, and under TensorRT-LLM, whose default follows the checkpoint; otherwise 16 bits. InferenceMAX gives
    TensorRT-LLM a step as large as the longest request.
    """
    replica, llm = replica_of(loop.llm, loop.gpu, loop.tp, loop.dtype, loop.inferencemax or loop.engine == "trtllm")
    if hides_host(loop):
        replica = replica.replace(coefficients=replica.coefficients.replace(overhead_s=0.0))
    own = loop.inferencemax and loop.engine == "trtllm"
    tokens = loop.prompt_tokens + loop.output_tokens if own else max(MOST_TOKENS, loop.prompt_tokens)
    plan = pattern()
    return plan.replace(
        llms=(llm,),
        replicas=(replica,),
        links=(),
        placement=plan.placement.replace(assignments=()),
        engine=plan.engine.replace(block_tokens=BLOCK_TOKENS, max_batched_tokens=tokens, max_sequences=2048),
        batching=plan.batching.replace(policy="vllm" if loop.engine == "sglang" else "vllm-chunked"),
    )


def simulated(loop: ClosedLoop) -> tuple[float, float]:
    """Return mean TTFT and TPOT of the simulated server."""
    prompts, outputs = lengths(loop)
    count = len(prompts)
    nothing = np.zeros(count)
    workload = Workload(np.arange(count), nothing, np.arange(count + 1), prompts, outputs, nothing)
    log = simulate(plan_of(loop), workload.with_arrivals(nothing, loop.concurrency), record_steps=False, record_tokens=False)
    return float(np.mean(log.first_token_s - log.arrival_s)), float(np.mean((log.end_s - log.first_token_s) / (outputs - 1)))


def errors(loops: Sequence[ClosedLoop]) -> np.ndarray:
    """Return the relative errors (rows, 2) of TTFT and TPOT."""
    return np.array([simulated(loop) for loop in loops]) / [(loop.ttft_s, loop.tpot_s) for loop in loops] - 1


def kind(loop: ClosedLoop) -> tuple[str, ...]:
    """Return the cells that name a row's group."""
    client = "InferenceMAX" if loop.inferencemax else "fixed lengths"
    waits = loop.inferencemax and loop.engine == "trtllm" and loop.prompt_tokens == loop.output_tokens and loop.tp < 8
    return f"{loop.llm}, {loop.dtype}", loop.gpu, loop.engine + (", waits for batches" if waits else ""), client


def cells(found: np.ndarray) -> list[str]:
    """Return the number of rows, and of TTFT and TPOT the mean absolute error and the median one."""
    size, middle = np.abs(found).mean(axis=0), np.median(found, axis=0)
    return [
        str(len(found)),
        *(f"{100 * value:{sign}.1f} %" for i in range(2) for value, sign in ((size[i], ""), (middle[i], "+"))),
    ]


def tables(path: Path) -> dict[str, str]:
    """Return the section's tables."""
    loops, refused = read_closed_loops(path)
    found, kinds = errors(loops), [kind(loop) for loop in loops]
    groups: Iterable[tuple[str, ...]] = sorted(set(kinds))
    rows = [[*group, *cells(found[[own == group for own in kinds]])] for group in groups]
    rows.append(["all", "", "", "", *cells(found)])
    header = ["llm", "gpu", "engine", "client", "rows", "TTFT, MAPE", "median", "TPOT, MAPE", "median"]
    left_out = [[reason, f"{count:,}"] for reason, count in sorted(refused.items(), key=lambda item: -item[1])]
    return {
        "closed-loops": markdown(header, rows),
        "closed-loops-left-out": markdown(["rows refused because", "rows"], left_out),
    }


def main() -> None:
    """Fill the section's tables."""
    fill(Path(__file__).resolve().parents[2] / "docs" / "accuracy.md", tables(silicon_sample()), COMMAND)


if __name__ == "__main__":
    main()
