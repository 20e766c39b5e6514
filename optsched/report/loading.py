"""Read what a report can be made of, by what the file is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optsched import files
from optsched.domain.plan import Plan
from optsched.errors import OptschedError, SpecError
from optsched.logfile import load_logged
from optsched.report.capacity_answer import CapacityAnswer
from optsched.report.pages.plan import Executed


@dataclass(frozen=True, slots=True)
class Logged:
    """A log with the plan that was executed."""

    plan: Plan
    executed: Executed


def load_source(path: Path) -> Plan | Logged | CapacityAnswer:
    """Read a plan (``FILE#NAME``: one of a set), a log, or the answer that ``optsched capacity --json`` printed.

    Raises
    ------
    SpecError
        If the file is none of them, or anything about it is wrong.
    PlanError
        If the plan contradicts itself.
    UnknownNameError
        If a set holds no plan of that name.
    """
    file = Path(str(path).partition("#")[0])
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        log, plan, workload = load_logged(path)
        if plan is None:
            raise SpecError(
                "the log does not name its plan, which has the prediction; write it with: optsched run PLAN.json --log", file=path
            )
        return Logged(plan, Executed(workload, log))
    if suffix != ".json":
        raise SpecError(
            f"{path.name!r}: a report is made of a plan or what capacity --json printed (.json), or of a log (.parquet)"
        )
    data = files.read_json(file)
    if isinstance(data, dict) and "schema" not in data and CapacityAnswer.is_one(data):
        return files.validate(CapacityAnswer, data, file)
    if isinstance(data, dict) and "infeasible" in data:
        raise SpecError(
            "the answer is that no fleet keeps the targets; it has no page, but says which limits to relax", file=file
        )
    if isinstance(data, dict) and "sweep" in data:
        raise SpecError("a sweep over rates is not one answer; make the page of one rate: capacity --rate R --json", file=file)
    return files.load_plan(path)


def executed_of(plan: Plan) -> Executed | str:
    """Simulate a plan on its own workload; or say why that is not possible (its trace is elsewhere, say)."""
    from optsched.simulator.simulate import simulate
    from optsched.traces.loading import load_workload

    try:
        workload = load_workload(plan.workload)
        return Executed(workload, simulate(plan, workload, seed=plan.workload.seed))
    except OptschedError as error:
        return " ".join(str(error).split())
