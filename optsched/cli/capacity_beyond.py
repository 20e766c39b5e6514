"""What stands beside a capacity answer on request: the front of money, energy and latency, and how much the plan bears."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optsched.cli.capacity_answer import entry_json, in_words
from optsched.cli.output import print_line, print_table
from optsched.report.numbers import seconds

if TYPE_CHECKING:
    from optsched.planner.capacity_front import ParetoPoint
    from optsched.planner.robustness import Disturbed, Robustness


@dataclass(frozen=True, slots=True)
class Beyond:
    """The front, and what each pool's plan bears, by its name; None: not asked."""

    pareto: tuple[ParetoPoint, ...] | None
    robustness: dict[str, Robustness] | None

    def json(self) -> dict[str, object]:
        """Return it as plain data; with one pool, the robustness is its."""
        found: dict[str, object] = {}
        if self.pareto is not None:
            found["pareto"] = pareto_json(self.pareto)
        if self.robustness is not None:
            each = {name: robustness_json(borne) for name, borne in self.robustness.items()}
            found["robustness"] = each.get("", each)
        return found

    def print(self) -> None:
        """Print it for people."""
        if self.pareto is not None:
            print_pareto(self.pareto)
        for name, borne in (self.robustness or {}).items():
            print_robustness(name, borne)


def pareto_json(points: tuple[ParetoPoint, ...]) -> list[dict[str, object]]:
    """Return a front as plain data."""
    return [
        {
            "fleet": [entry_json(entry) for entry in point.fleet], "usd_per_hour": point.usd_per_hour, "power_w": point.power_w,
            "p95_latency_s": point.p95_latency_s, "tightness": point.tightness, "chosen": point.chosen,
            "simulated": [None if metrics is None else metrics.model_dump(mode="json") for metrics in point.simulated],
        }
        for point in points
    ]  # fmt: skip


def print_pareto(points: tuple[ParetoPoint, ...]) -> None:
    """Print a front."""
    rows = []
    for point in points:
        known = [metrics for metrics in point.simulated if metrics is not None]
        e2e = [metrics.e2e_s.p95 for metrics in known if metrics.e2e_s.p95 is not None]
        attainment = f"{min(metrics.slo_attainment for metrics in known):.1%}" if len(known) == len(point.simulated) else "-"
        fleet = in_words(point.fleet) + (" (chosen)" if point.chosen else "")
        rows.append(
            (
                fleet, f"{point.usd_per_hour:.4g}", f"{point.power_w:.4g}",
                seconds(point.p95_latency_s), seconds(max(e2e, default=None)), attainment,
            )
        )  # fmt: skip
    columns = ("fleet", "USD/h", "mean W", "p95 end to end, unqueued", "simulated", "attainment")
    print_table("None is better in money, energy and latency at once", columns, rows)


def robustness_json(found: Robustness) -> dict[str, object]:
    """Return what a plan bears as plain data; a break point that was not found is null."""
    return {
        "rate": [_disturbed(each) for each in found.rate],
        "outputs": [_disturbed(each) for each in found.outputs],
        "rate_breaks": found.rate_breaks if math.isfinite(found.rate_breaks) else None,
        "outputs_break": found.outputs_break if math.isfinite(found.outputs_break) else None,
    }


def _disturbed(each: Disturbed) -> dict[str, object]:
    return {
        "factor": each.factor, "attainment": each.attainment, "met": each.met, "worst_target": each.worst[0],
        "excess_violations": each.worst[1], "ttft_p95_s": each.ttft_p95_s, "tpot_p95_s": each.tpot_p95_s,
        "usd_per_million_tokens": each.usd_per_million_tokens,
    }  # fmt: skip


def print_robustness(name: str, found: Robustness) -> None:
    """Print what a plan bears."""
    rows = []
    for what, tried in (("rate", found.rate), ("outputs", found.outputs)):
        for each in tried:
            usd = "-" if each.usd_per_million_tokens is None else f"{each.usd_per_million_tokens:.3g}"
            rows.append(
                (
                    f"{what} x {each.factor:g}", f"{each.attainment:.1%}", "met" if each.met else f"misses {each.worst[0]}",
                    seconds(each.ttft_p95_s), seconds(each.tpot_p95_s), usd,
                )
            )  # fmt: skip
    title = f"The plan under other traffic{': ' if name else ''}{name}"
    print_table(title, ("", "attainment", "targets", "TTFT p95", "TPOT p95", "USD per million tokens"), rows)
    print_line(f"Targets are kept up to rate x {_factor(found.rate_breaks)} and outputs x {_factor(found.outputs_break)}")


def _factor(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "16 and more"
