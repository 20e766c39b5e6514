"""Which latency targets stand, told as a referee does: by the share of conversations that miss each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optsched.domain.results import Metrics, Quantiles
from optsched.domain.scenario import LatencyTarget, Slo
from optsched.report.numbers import factor, seconds

LATENCIES: dict[str, str] = {
    "ttft_s": "TTFT", "ttfet_s": "TTFET", "tbt_s": "TBT", "tpot_s": "TPOT", "e2e_s": "end to end",
}  # fmt: skip
NORMALISED: dict[str, str] = {"ttfet": "TTFET", "last_turn_tbt": "last-turn TBT", "e2e": "end to end"}
_PER_CONVERSATION = ("ttfet", "e2e")
"""Targets whose latency is one figure per conversation; of the others metrics hold quantiles over all turns or gaps."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one target.

    Attributes
    ----------
    key, name
        The target in the scenario (``ttfet``), and as people write it.
    target
        The target in words.
    limit
        Its number: seconds, or a multiple of the standalone latency.
    relative
        Whether `limit` is a multiple.
    reached
        The figure at the target's percentile over conversations, where the metrics hold that one; None otherwise.
    missed, allowed
        Share of conversations that miss it, and that may.
    """

    key: str
    name: str
    target: str
    limit: float
    relative: bool
    reached: float | None
    missed: float
    allowed: float

    @property
    def kept(self) -> bool:
        """Whether no more conversations miss the target than may."""
        return self.missed <= self.allowed + 1e-12

    @property
    def write(self) -> Callable[[float | None], str]:
        """How its numbers are written."""
        return factor if self.relative else seconds


def verdicts(slo: Slo, metrics: Metrics) -> list[Verdict]:
    """Return a verdict for each target that binds, in the order of the scenario's table."""
    found = []
    for key in Slo.model_fields:
        target: LatencyTarget | None = getattr(slo, key)
        if target is None or key not in metrics.slo_violations:
            continue
        relative = target.seconds is None
        limit = target.standalone_factor if target.seconds is None else target.seconds
        assert limit is not None
        bound = f"{limit:g} x standalone" if relative else seconds(limit)
        found.append(
            Verdict(
                key=key,
                name=LATENCIES[f"{key}_s"],
                target=f"p{target.percentile:g} at most {bound}",
                limit=limit,
                relative=relative,
                reached=_reached(key, target, metrics),
                missed=metrics.slo_violations[key],
                allowed=1 - target.percentile / 100,
            )
        )
    return found


def _reached(key: str, target: LatencyTarget, metrics: Metrics) -> float | None:
    if key not in _PER_CONVERSATION:
        return None
    quantiles: Quantiles = getattr(metrics.normalised, key) if target.seconds is None else getattr(metrics, f"{key}_s")
    name = f"p{target.percentile:g}"
    return getattr(quantiles, name) if name in Quantiles.model_fields else None


def in_one_sentence(found: list[Verdict]) -> str:
    """Return what the verdicts come to."""
    if not found:
        return "No latency targets are set."
    missed = [each for each in found if not each.kept]
    if not missed:
        return "Every latency target is kept." if len(found) > 1 else f"The target of {found[0].name} is kept."
    listed = "; ".join(
        f"{each.name} by {100 * each.missed:.3g} % of conversations, {100 * each.allowed:.3g} % may" for each in missed
    )
    return f"Targets are missed: {listed}."
