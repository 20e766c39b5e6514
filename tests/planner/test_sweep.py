"""Many capacity questions at once."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.domain.scenario import LatencyTarget
from optsched.errors import SpecError
from optsched.planner.sweep import Question, sweep

CHAT = catalog.scenario("chat-l4")
SHORT = CHAT.replace(workload=CHAT.workload.replace(conversations=20))


def questions() -> list[Question]:
    hopeless = SHORT.replace(slo=SHORT.slo.replace(ttft=LatencyTarget(seconds=1e-3)))
    return [Question(SHORT, rate_per_s=0.3), Question(hopeless, rate_per_s=0.3), Question(SHORT, rate_per_s=0.1)]


def test_questions_are_answered_in_order_and_infeasible_is_an_answer() -> None:
    told: list[tuple[float, float]] = []
    found = sweep(questions(), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [outcome.question for outcome in found] == questions()
    assert [outcome.infeasible is None for outcome in found] == [True, False, True]
    assert "No replica type serves anything" in found[1].infeasible
    assert found[2].usd_per_hour <= found[0].usd_per_hour


@pytest.mark.slow
def test_several_processes_answer_what_one_answers() -> None:
    assert sweep(questions(), processes=2) == sweep(questions(), processes=1)


def test_what_ifs_are_scenarios_with_something_replaced() -> None:
    dearer = SHORT.replace(supply={"l4": {"max": 4}, "a40": {"max": 4}}, fleet=(), objective={"minimise": "cost"})
    only, more = sweep([Question(dearer.replace(supply={"a40": {"max": 4}})), Question(dearer)])
    assert more.usd_per_hour <= only.usd_per_hour


def test_a_wrong_question_is_an_error() -> None:
    closed = SHORT.workload.arrivals.replace(process="closed", rate_per_s=None, concurrency=4)
    wrong = Question(SHORT.replace(workload=SHORT.workload.replace(arrivals=closed)))
    with pytest.raises(SpecError, match="capacity plans for arrivals"):
        sweep([wrong])
