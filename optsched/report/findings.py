"""What a report says, as a page, as data, and in one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.report.accuracy import DRIFT, OperationClass, operation_classes, relative_errors
from optsched.report.capacity_answer import CapacityAnswer
from optsched.report.drift import drift_in_words
from optsched.report.loading import Logged, executed_of
from optsched.report.pages.capacity import capacity_page
from optsched.report.pages.log import log_page
from optsched.report.pages.plan import plan_page
from optsched.report.verdicts import in_one_sentence, verdicts


class Advance(Protocol):
    """Tell how much is done."""

    def __call__(self, done: float, total: float | None = None) -> None:
        """Set the amount done, and the total if it became known."""
        ...


@dataclass(frozen=True, slots=True)
class Findings:
    """A report.

    Attributes
    ----------
    page
        An HTML document.
    facts
        The same as plain data.
    summary
        What it comes to.
    """

    page: str
    facts: dict[str, object]
    summary: str


def find_out(source: Plan | Logged | CapacityAnswer, name: str, advance: Advance) -> Findings:
    """Make a report.

    Parameters
    ----------
    source
        What `loading.load_source` read.
    name
        The file's name.
    advance
        Told how much is done.
    """
    if isinstance(source, Plan):
        return _of_plan(source, name, advance)
    if isinstance(source, Logged):
        return _of_log(source, name)
    facts: dict[str, object] = {"kind": "capacity", "certificate": source.certificate.model_dump(mode="json")}
    return Findings(capacity_page(source, source=name), facts, " + ".join(row.words for row in source.fleet))


def _of_plan(plan: Plan, name: str, advance: Advance) -> Findings:
    found = verdicts(plan.slo, plan.predicted)
    executed = executed_of(plan)
    advance(1, 1)
    facts: dict[str, object] = {
        "kind": "plan",
        "targets": [{**asdict(each), "kept": each.kept} for each in found],
        "certificate": plan.certificate.model_dump(mode="json"),
        "predicted": plan.predicted.model_dump(mode="json"),
        "not_drawn": executed if isinstance(executed, str) else None,
    }
    return Findings(plan_page(plan, source=name, executed=executed), facts, in_one_sentence(found))


def _of_log(logged: Logged, name: str) -> Findings:
    plan, executed = logged.plan, logged.executed
    observed = measure_plan(plan, executed.log, executed.workload, plan.predicted.clock)
    errors = relative_errors(plan.predicted, observed)
    classes = operation_classes(executed.log, plan)
    facts: dict[str, object] = {
        "kind": "log",
        "origin": executed.log.origin,
        "predicted": plan.predicted.model_dump(mode="json"),
        "observed": observed.model_dump(mode="json"),
        "error": errors,
        "drift_limit": DRIFT,
        "operations": [_operations(each) for each in classes],
        "recovered_conversations": sum(event.kind == "recovered" for event in executed.log.events),
    }
    page = log_page(plan, executed, observed, errors, classes, source=name)
    return Findings(page, facts, drift_in_words(classes))


def _operations(found: OperationClass) -> dict[str, object]:
    return {
        "class": found.name,
        "count": len(found.start_s),
        "predicted_s": float(found.predicted_s.mean()),
        "observed_s": float(found.observed_s.mean()),
        "error": found.error,
        "drifted": found.drifted,
    }
