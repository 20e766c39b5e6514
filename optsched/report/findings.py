"""What a report says, as a page, as data, and in one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from optsched.domain.accounting import measure_plan
from optsched.domain.plan import Plan
from optsched.report.accuracy import DRIFT, operation_classes, relative_errors
from optsched.report.capacity_answer import CapacityAnswer
from optsched.report.drift import drift_in_words
from optsched.report.loading import Logged, executed_of
from optsched.report.pages.capacity import capacity_page
from optsched.report.pages.log import log_page
from optsched.report.pages.plan import plan_page
from optsched.report.sensitivity import sensitivity_section
from optsched.report.verdicts import in_one_sentence, verdicts

if TYPE_CHECKING:
    from optsched.planner.robustness import Robustness


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
    robustness
        Of a plan, what it bears; None where that was not asked, or could not be.
    """

    page: str
    facts: dict[str, object]
    summary: str
    robustness: Robustness | None = None


def find_out(source: Plan | Logged | CapacityAnswer, name: str, advance: Advance, *, sensitivity: bool = True) -> Findings:
    """Make a report.

    Parameters
    ----------
    source
        What `loading.load_source` read.
    name
        The file's name.
    advance
        Told how much is done.
    sensitivity
        Whether to simulate a plan under other traffic too.
    """
    if isinstance(source, Plan):
        return _of_plan(source, name, advance, sensitivity)
    if isinstance(source, Logged):
        return _of_log(source, name)
    facts: dict[str, object] = {"kind": "capacity", "certificate": source.certificate.model_dump(mode="json"), "met": source.met}
    return Findings(capacity_page(source, source=name), facts, source.words)


def _of_plan(plan: Plan, name: str, advance: Advance, sensitivity: bool) -> Findings:
    found = verdicts(plan.slo, plan.predicted)
    executed, borne = executed_of(plan), None
    # A closed loop has no arrival rate to raise.
    if sensitivity and not isinstance(executed, str) and executed.workload.concurrency is None:
        from optsched.planner.robustness import robustness

        borne = robustness(plan, executed.workload, progress=advance)
    facts: dict[str, object] = {
        "kind": "plan",
        "targets": [{**asdict(each), "kept": each.kept} for each in found],
        "certificate": plan.certificate.model_dump(mode="json"),
        "predicted": plan.predicted.model_dump(mode="json"),
        "not_drawn": executed if isinstance(executed, str) else None,
    }
    more = () if borne is None else (sensitivity_section(borne),)
    return Findings(plan_page(plan, source=name, executed=executed, more=more), facts, in_one_sentence(found), borne)


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
        "operations": [each.facts() for each in classes],
        "recovered_conversations": executed.recovered,
    }
    page = log_page(plan, executed, observed, errors, classes, source=name)
    return Findings(page, facts, drift_in_words(classes))
