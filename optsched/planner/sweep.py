"""Many capacity questions at once, in processes of their own: rates, supplies, targets, prices.

What-ifs are scenarios with something replaced::

    chat = catalog.scenario("chat-l4")
    more = [chat.replace(supply={"l4": chat.supply["l4"].replace(count=n)}, fleet=()) for n in range(1, 9)]
    tighter = [chat.replace(slo=chat.slo.replace(ttft=LatencyTarget(seconds=s))) for s in (0.5, 1, 2)]
    for outcome in sweep([Question(each, rate_per_s=0.4) for each in more + tighter]):
        print(outcome.usd_per_hour, outcome.infeasible)

Processes are spawned, so a script calls `sweep` under ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import ceil
from multiprocessing import get_context
from pathlib import Path

from optsched.domain.plan import Certificate
from optsched.domain.results import Metrics
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.errors import InfeasibleError, SolveError
from optsched.planner.capacity import capacity
from optsched.planner.replicas import known_laws, learn_laws

PER_PROCESS = 8
"""Questions that make a process worth its start of some seconds."""


@dataclass(frozen=True, slots=True)
class Question:
    """One capacity question; see `optsched.planner.capacity.capacity`."""

    scenario: Scenario
    base: Path | None = None
    trace: Path | None = None
    rate_per_s: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one question, without what it rests on.

    Attributes
    ----------
    fleet
        Replicas of each type, of all pools one after the other; empty if nothing serves the scenario.
    usd_per_hour, power_w
        Price, and sum of the power caps; None if nothing serves it.
    predicted
        By pool, what was simulated.
    infeasible
        Why nothing serves it; None if something does.
    """

    question: Question
    fleet: tuple[FleetEntry, ...] = ()
    usd_per_hour: float | None = None
    power_w: float | None = None
    predicted: tuple[tuple[str, Metrics], ...] = ()
    certificate: Certificate | None = None
    sustained: float | None = None
    infeasible: str | None = None


def sweep(
    questions: Sequence[Question], *, processes: int | None = None, progress: Callable[[float, float], None] | None = None
) -> tuple[Outcome, ...]:
    """Answer capacity questions, in their order.

    Parameters
    ----------
    questions
        What is asked.
    processes
        How many to use; None: one for every `PER_PROCESS` questions, and no more than there are processors. One stays in this
        process.
    progress
        Called with the questions answered so far and their number.

    Raises
    ------
    SolveError
        If a process died, for want of memory for instance.
    OptschedError
        If a question is wrong rather than infeasible.
    """
    number = min(os.cpu_count() or 1, ceil(len(questions) / PER_PROCESS)) if processes is None else processes
    if number <= 1:
        return tuple(_here(questions, progress))
    # The first answer condenses step laws that most others need, too: they are handed over instead of computed again.
    found: list[Outcome | None] = [_answered(questions[0]), *[None] * (len(questions) - 1)]
    with ProcessPoolExecutor(number, get_context("spawn"), learn_laws, (known_laws(),)) as pool:
        waiting = {pool.submit(_answered, question): index for index, question in enumerate(questions) if index}
        try:
            for done, future in enumerate(as_completed(waiting), start=2):
                found[waiting[future]] = future.result()
                if progress is not None:
                    progress(done, len(questions))
        except BrokenProcessPool as error:
            raise SolveError("A process of the sweep died; it may have run out of memory. Use fewer processes.") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(outcome for outcome in found if outcome is not None)


def _here(questions: Sequence[Question], progress: Callable[[float, float], None] | None) -> list[Outcome]:
    found = []
    for question in questions:
        found.append(_answered(question))
        if progress is not None:
            progress(len(found), len(questions))
    return found


def _answered(question: Question) -> Outcome:
    try:
        answer = capacity(
            question.scenario, base=question.base, trace=question.trace, rate_per_s=question.rate_per_s, seed=question.seed
        )
    except InfeasibleError as error:
        return Outcome(question, infeasible=str(error))
    return Outcome(
        question, answer.fleet, answer.cost_usd_per_hour, answer.power_w,
        tuple((each.pool.name, each.planned.plan.predicted) for each in answer.pools), answer.certificate, answer.sustained,
    )  # fmt: skip
