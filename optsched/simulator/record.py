"""Assemble the record of a run."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from optsched.domain.gaps import Gaps
from optsched.domain.log import ExecutionLog, Steps, Transfers
from optsched.simulator.run import Run

Array = np.ndarray


def log_of(run: Run, seed: int) -> ExecutionLog:
    """Return the log of a run that has come to its end.

    Parameters
    ----------
    run
        The run.
    seed
        Noted in the log.
    """
    record, state = run.state.turns, run.state
    moves = np.array(run.handovers.transfers, dtype=float).reshape(-1, 6)
    gaps, kept = None, state.gaps
    if not run.engine.record_tokens:
        gaps = Gaps.of_largest(kept.largest_s, run.workload, kept.histogram, float(kept.total_s[0]))
    return ExecutionLog(
        origin="simulated",
        arrival_s=record.arrival_s, start_s=record.start_s, first_token_s=record.first_token_s, end_s=record.end_s,
        prefill_replica=record.prefill_replica, decode_replica=record.decode_replica,
        queue_s=_queue_s(run), admission_s=run.admission_s,
        token_s=record.token_s if run.engine.record_tokens else None,
        steps=_steps(run),
        transfers=Transfers(
            moves[:, 0].astype(np.int64), moves[:, 1].astype(np.int64), moves[:, 2].astype(np.int64),
            moves[:, 3], moves[:, 4], moves[:, 5],
        ),
        dynamic_j=_dynamic_j(run),
        events=tuple(run.handovers.events),
        preemptions=int(state.counters[1]),
        seed=seed,
        gaps=gaps,
        reused_tokens=int(state.prefixes.reused_tokens[0]),
    )  # fmt: skip


def _queue_s(run: Run) -> Float64[Array, " T"]:
    """Return how long first turns waited for their prefill: on a prefiller to start, elsewhere to be granted."""
    record, first = run.state.turns, run.workload.first_turn[:-1]
    queue_s = np.zeros(run.workload.num_turns)
    prefiller = run.state.replicas.prefill_only[record.prefill_replica[first]]
    granted_s = run.granted_s if run.engine.direct < 0 else record.arrival_s[first]
    queue_s[first] = np.where(prefiller, record.start_s[first], granted_s) - record.arrival_s[first]
    return queue_s


def _steps(run: Run) -> Steps:
    """Return the recorded steps by their ends; those that end together, by replica."""
    integers = np.concatenate([chunk for chunk, _ in run.steps])
    floats = np.concatenate([chunk for _, chunk in run.steps])
    order = np.lexsort((integers[:, 0], floats[:, 1]))
    integers, floats = integers[order], floats[order]
    return Steps(
        replica=integers[:, 0], start_s=floats[:, 0], end_s=floats[:, 1], prefill_tokens=integers[:, 1],
        pairs=floats[:, 2], prefill_context_tokens=integers[:, 7], sequences=integers[:, 2],
        decode_sequences=integers[:, 3], kv_tokens=integers[:, 4], hidden_tokens=integers[:, 5],
        busy_replicas=integers[:, 6],
    )  # fmt: skip


def _dynamic_j(run: Run) -> Float64[Array, " R"]:
    """Return the energy above idle of each replica, that of what it sends included."""
    dynamic_j: Float64[Array, " R"] = run.state.replicas.dynamic_j.copy()
    joules = {(link.source, link.target): link.joules_per_byte for link in run.plan.links}
    for _, source, target, _, _, size in run.handovers.transfers:
        dynamic_j[source] += size * joules[run.plan.replicas[source].id, run.plan.replicas[target].id]
    return dynamic_j
