"""The page of a log: what was predicted against what was observed, and where the prediction was wrong."""

from __future__ import annotations

from collections import Counter

from optsched import __version__
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.results import Metrics
from optsched.report.accuracy import DRIFT, OperationClass
from optsched.report.drift import drift_in_words, figures_body, operations_body
from optsched.report.latencies import promise_body
from optsched.report.markup import Section, Tile, join, table
from optsched.report.numbers import change, plain, quantity, seconds, share
from optsched.report.page import page
from optsched.report.pages.plan import Executed, timeline_section
from optsched.report.verdicts import in_one_sentence, verdicts

_MOST_EVENTS = 200


def log_page(
    plan: Plan, executed: Executed, observed: Metrics, errors: dict[str, float], classes: list[OperationClass], *, source: str
) -> str:
    """Return a log as a page.

    Parameters
    ----------
    plan, executed
        What was planned, and what was executed with what happened.
    observed
        Its figures.
    errors
        ``(predicted - observed) / observed`` by name.
    classes
        Operations by kind.
    source
        The log's file, named at the end of the page.
    """
    log, found = executed.log, verdicts(plan.slo, observed)
    drifted = any(each.drifted for each in classes)
    sections = [
        Section("figures", "Predicted and observed", _figures_lead(log), figures_body(plan.predicted, observed, errors)),
        Section("operations", "Operations", _OPERATIONS, operations_body(classes)),
        Section("promise", "Promise", f"As observed. {in_one_sentence(found)}", promise_body(observed, found)),
        *_events(plan, log),
        timeline_section(plan, executed),
    ]
    return page(
        title=f"{', '.join(llm.name for llm in plan.llms)}: {'a run' if log.origin == 'observed' else 'a simulation'}",
        subtitle=f"{log.origin.capitalize()}; placement {plan.placement.policy}, batching {plan.batching.policy}",
        verdict=drift_in_words(classes),
        tone="bad" if drifted else "good" if classes else "plain",
        leading=_tiles(plan, executed, observed, errors),
        sections=sections,
        footer=f"Made from {source} by optsched {__version__}; scenario {plan.scenario_sha256[:12]}.",
    )


_OPERATIONS = (
    f"Each step against the cost model's time for that very step, so that queues and batches do not count. A kind has drifted "
    f"where the sums differ by more than {share(DRIFT)}; optsched calibrate --from LOG fits the coefficients anew."
)


def _figures_lead(log: ExecutionLog) -> str:
    if log.origin == "simulated":
        return "This log is of a simulation; differences come from another clock, seed, rate or policy than the plan's."
    return "Error: predicted over observed, less one. Red bars exceed the limit; a full bar is 100 %."


def _tiles(plan: Plan, executed: Executed, observed: Metrics, errors: dict[str, float]) -> list[Tile]:
    predicted, moved = plan.predicted, len(executed.log.transfers.start_s)
    return [
        Tile("Meet every target", share(observed.slo_attainment), f"predicted {share(predicted.slo_attainment)}"),
        Tile("TTFT p95", seconds(observed.ttft_s.p95), f"predicted {change(errors.get('ttft_s.p95'))}"),
        Tile("TBT p95", seconds(observed.tbt_s.p95), f"predicted {change(errors.get('tbt_s.p95'))}"),
        Tile("Output tokens/s", plain(observed.tokens_per_s), f"predicted {change(errors.get('tokens_per_s'))}"),
        Tile("Makespan", quantity(observed.makespan_s, "s"), f"predicted {change(errors.get('makespan_s'))}"),
        Tile("Steps", f"{executed.log.iterations:,}", f"{moved:,} transfers, {executed.recovered:,} recovered"),
    ]


def _events(plan: Plan, log: ExecutionLog) -> list[Section]:
    if not log.events:
        return []
    names = [replica.id for replica in plan.replicas]
    counts = Counter(event.kind for event in log.events)
    lead = ", ".join(f"{count:,} x {kind.replace('_', ' ')}" for kind, count in counts.most_common())
    rows = [
        (
            f"{event.time_s:.3f} s", event.kind.replace("_", " "), str(event.conversation) if event.conversation >= 0 else "-",
            names[event.replica] if 0 <= event.replica < len(names) else "-", event.detail,
        )
        for event in log.events[:_MOST_EVENTS]
    ]  # fmt: skip
    if (more := len(log.events) - _MOST_EVENTS) > 0:
        rows.append(("", f"and {more:,} more", "", "", ""))
    body = table(("time", "event", "conversation", "replica", "detail"), rows, left=5)
    return [Section("events", "Events", f"{lead}.", join([body]))]
