"""Placement problem files, and the instances shipped with their best-known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from placement_cases import problems

from optsched import files
from optsched.errors import SpecError
from optsched.placement.bound import lower_bound
from optsched.placement.evaluate import evaluate
from optsched.placement.record import KIND, ProblemRecord, read_problem, record_of, write_problem
from optsched.placement.solve import solve

INSTANCES = sorted((Path(__file__).resolve().parents[2] / "instances" / "placement").glob("*.json"))


@given(problems())
def test_reading_what_was_written_gives_the_same_problem(problem) -> None:
    record = record_of(problem, title="drawn")
    again = files.validate(ProblemRecord, files.open_envelope(json.loads(json.dumps(files.dump(record, KIND))), KIND))
    assert again == record
    assert record_of(again.problem(), title="drawn") == record


@pytest.mark.parametrize("path", INSTANCES, ids=lambda path: path.stem)
def test_best_known_answers_have_the_value_and_bound_they_claim(path) -> None:
    record = read_problem(path)
    known = record.best_known
    assert known is not None
    problem = record.problem()
    assert known.plan.violations(problem) == []
    assert evaluate(problem, known.plan).value(problem.objective) == pytest.approx(known.value, rel=1e-9)
    assert lower_bound(problem).value <= known.value
    assert known.bound <= known.value
    assert (known.status == "OPTIMAL") == (known.bound >= known.value * (1 - 1e-5))


@pytest.mark.parametrize("path", [path for path in INSTANCES if "small" in path.stem], ids=lambda path: path.stem)
def test_small_instances_are_solved_to_their_best_known_value(path) -> None:
    record = read_problem(path)
    assert record.best_known is not None
    found = solve(record.problem())
    assert found.status == "OPTIMAL"
    assert found.value == pytest.approx(record.best_known.value, rel=1e-5)


def test_there_are_instances() -> None:
    assert len(INSTANCES) >= 4


def written(tmp_path: Path, **changes: object) -> Path:
    data = json.loads(INSTANCES[0].read_text())
    path = tmp_path / "problem.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


def test_files_that_contradict_themselves_are_refused_with_file_and_field(tmp_path) -> None:
    turn = {"arrival_s": 0.0, "new_tokens": [5, 6], "output_tokens": [1]}
    with pytest.raises(
        SpecError, match=r"problem.json: conversations.0: 2 new_tokens, 1 output_tokens, 0 gap_s; give one of each"
    ):
        read_problem(written(tmp_path, conversations=[turn], best_known=None))
    with pytest.raises(SpecError, match=r"problem.json: .*fits on no pair"):
        read_problem(written(tmp_path, links=[], replicas=json.loads(INSTANCES[0].read_text())["replicas"][:1]))
    with pytest.raises(SpecError, match=r"problem.json: colour: unknown key"):
        read_problem(written(tmp_path, colour="red"))
    with pytest.raises(SpecError, match=r"problem.json: objective: 'speed'"):
        read_problem(written(tmp_path, objective="speed"))


def test_a_problem_is_written_whole(tmp_path) -> None:
    record = read_problem(INSTANCES[0])
    write_problem(record, tmp_path / "copy.json")
    assert read_problem(tmp_path / "copy.json") == record
