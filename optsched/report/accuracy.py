"""Predicted against observed: the figures that users see, and the operations that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from optsched.domain.log import ExecutionLog, Steps
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics
from optsched.domain.slowdown import factors_at
from optsched.report.verdicts import LATENCIES

Array = np.ndarray
DRIFT = 0.10
"""A class of operations whose predicted time differs by more than this from the observed has drifted."""
FEWEST = 5
"""Of fewer operations than this nothing is said."""
QUANTILES = ("mean", "p50", "p95", "p99")
SCALARS: dict[str, str] = {"makespan_s": "makespan", "tokens_per_s": "output tokens/s", "energy_j": "energy"}


def relative_errors(predicted: Metrics, observed: Metrics) -> dict[str, float]:
    """Return ``(predicted - observed) / observed`` of every figure that both have, by name (``ttft_s.mean``, ``makespan_s``)."""
    pairs: dict[str, tuple[float | None, float | None]] = {
        f"{name}.{quantile}": (getattr(getattr(predicted, name), quantile), getattr(getattr(observed, name), quantile))
        for name in LATENCIES
        for quantile in QUANTILES
    }
    pairs |= {name: (getattr(predicted, name), getattr(observed, name)) for name in SCALARS}
    return {name: theirs / ours - 1.0 for name, (theirs, ours) in pairs.items() if theirs is not None and ours}


@dataclass(frozen=True, slots=True)
class OperationClass:
    """Operations of one kind, in order of their start.

    Attributes
    ----------
    name
        ``prefill steps``, ``decode steps``, ``mixed steps`` or ``transfers``.
    start_s, observed_s, predicted_s
        When each began, how long it took, and how long the plan's coefficients say that it takes.
    """

    name: str
    start_s: Float64[Array, " n"]
    observed_s: Float64[Array, " n"]
    predicted_s: Float64[Array, " n"]

    @property
    def error(self) -> float | None:
        """``predicted / observed - 1`` of the total time; None where there is none."""
        total = float(self.observed_s.sum())
        return float(self.predicted_s.sum()) / total - 1 if total > 0 else None

    @property
    def drifted(self) -> bool:
        """Whether that error exceeds `DRIFT`, over at least `FEWEST` operations."""
        return len(self.start_s) >= FEWEST and self.error is not None and abs(self.error) > DRIFT

    def facts(self) -> dict[str, object]:
        """Return it as plain data: how many, mean times, the error of the sum, and whether that is drift."""
        return {
            "class": self.name,
            "count": len(self.start_s),
            "predicted_s": float(self.predicted_s.mean()),
            "observed_s": float(self.observed_s.mean()),
            "error": self.error,
            "drifted": self.drifted,
        }

    def over_time(self, most: int = 24) -> list[tuple[float, float]]:
        """Return ``observed / predicted`` of the total time in stretches of the run with equally many operations.

        Parameters
        ----------
        most
            Stretches at most; each has at least `FEWEST` operations.
        """
        if not len(self.start_s):
            return []
        parts = np.array_split(np.arange(len(self.start_s)), max(1, min(most, len(self.start_s) // FEWEST)))
        middle = [float(self.start_s[part].mean()) for part in parts]
        ratio = [float(self.observed_s[part].sum() / max(self.predicted_s[part].sum(), 1e-300)) for part in parts]
        return list(zip(middle, ratio, strict=True))


def operation_classes(log: ExecutionLog, plan: Plan) -> list[OperationClass]:
    """Divide what replicas did into classes, with what the plan's coefficients predict for each operation.

    A step's prediction is the replica's law for the step's own content, slowed down as `StepLaw.busy_slowdown` says for the
    replicas of its host that were busy: it tells the cost model's error from that of queues and batches. Classes without
    operations are left out.
    """
    steps = log.steps
    prefill, decode = steps.prefill_tokens > 0, steps.decode_sequences > 0
    predicted = _steps_s(steps, plan)
    kinds = {"prefill steps": prefill & ~decode, "decode steps": decode & ~prefill, "mixed steps": prefill & decode}
    found = [_class(name, steps.start_s, steps.end_s, predicted, chosen) for name, chosen in kinds.items()]
    moves = log.transfers
    finished = np.isfinite(moves.start_s) & np.isfinite(moves.end_s)
    found.append(_class("transfers", moves.start_s, moves.end_s, _transfers_s(log, plan), finished))
    return [each for each in found if len(each.start_s)]


def _class(
    name: str,
    start_s: Float64[Array, " n"],
    end_s: Float64[Array, " n"],
    predicted_s: Float64[Array, " n"],
    chosen: Bool[Array, " n"],
) -> OperationClass:
    chosen = chosen & np.isfinite(predicted_s)
    order = np.argsort(start_s[chosen], kind="stable")
    observed = (end_s - start_s)[chosen]
    return OperationClass(name, start_s[chosen][order], observed[order], predicted_s[chosen][order])


def _steps_s(steps: Steps, plan: Plan) -> Float64[Array, " S"]:
    predicted = np.full(len(steps.replica), np.nan)
    for index, replica in enumerate(plan.replicas):
        mine = steps.replica == index
        law = replica.coefficients
        predicted[mine] = factors_at(law.busy_slowdown, steps.busy_replicas[mine] - 1) * law.step_s(
            steps.prefill_tokens[mine] + steps.decode_sequences[mine], steps.pairs[mine], steps.kv_tokens[mine],
            steps.sequences[mine], steps.hidden_tokens[mine], steps.prefill_context_tokens[mine],
        )  # fmt: skip
    return predicted


def _transfers_s(log: ExecutionLog, plan: Plan) -> Float64[Array, " X"]:
    """Return what its link says of each transfer, with as many of a shared host's replicas busy as were when it began.

    NaN where no link of the plan joins its ends.
    """
    index_of = {replica.id: index for index, replica in enumerate(plan.replicas)}
    moves, predicted = log.transfers, np.full(len(log.transfers.bytes), np.nan)
    for link in plan.links:
        source, target = index_of[link.source], index_of[link.target]
        mine = (moves.source == source) & (moves.target == target)
        if mine.any():
            took_s = link.latency_s + moves.bytes[mine] / link.bytes_per_s
            busy = log.steps.busy_at(moves.start_s[mine], _neighbours(plan, source))
            predicted[mine] = took_s * factors_at(link.busy_slowdown, busy)
    return predicted


def _neighbours(plan: Plan, replica: int) -> list[int]:
    """Return the replicas on the same shared host, the replica among them; none if it has a machine of its own."""
    host = plan.replicas[replica].host
    return [index for index, other in enumerate(plan.replicas) if host is not None and other.host == host]
