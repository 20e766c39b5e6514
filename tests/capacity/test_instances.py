"""The packaged capacity problems and scenarios, against the answers beside them."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from capacity_problems import melange

from optsched import catalog
from optsched.capacity.problem_file import load_fleet_problem
from optsched.capacity.solve import solve_fleet
from optsched.errors import SpecError
from optsched.planner.capacity import capacity

FOLDER = catalog.data_root() / "instances" / "capacity"
KNOWN = tomllib.loads((FOLDER / "best_known.toml").read_text())


def test_every_file_has_a_best_known_answer() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(KNOWN["problem"])
    assert {path.stem for path in FOLDER.glob("*.toml")} - {"best_known"} == set(KNOWN["scenario"]) | set(KNOWN["rate"])


@pytest.mark.parametrize("name", KNOWN["problem"])
def test_problems_are_solved_to_their_optimum(name: str) -> None:
    problem = load_fleet_problem(FOLDER / f"{name}.json")
    answer = solve_fleet(problem)
    assert answer.status == "OPTIMAL"
    assert answer.value == pytest.approx(KNOWN["problem"][name])
    assert problem.violations(answer.plan) == []


def test_the_published_cost_of_the_small_sample_takes_a_server_that_lacks_a_few_requests() -> None:
    problem = load_fleet_problem(FOLDER / "inferno-small.json")
    demand = problem.demand_per_s.copy()
    demand[3] *= 1 - 2.6e-4
    lacking = solve_fleet(dataclasses.replace(problem, demand_per_s=demand)).value
    assert lacking <= 37_924.5 < KNOWN["problem"]["inferno-small"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_file_of_a_problem_is_the_problem(whole: bool) -> None:
    read = load_fleet_problem(FOLDER / ("melange-example.json" if whole else "melange-example-split.json"))
    for field in ("demand_per_s", "rate_per_s", "cost", "uses", "limits"):
        assert np.array_equal(getattr(read, field), getattr(melange(whole), field))
    assert read.whole == whole


def test_names_that_no_list_has_are_refused(tmp_path: Path) -> None:
    text = (FOLDER / "melange-example.json").read_text()
    (tmp_path / "wrong.json").write_text(text.replace('"rate_per_s": {"in0-out0"', '"rate_per_s": {"in9"', 1))
    with pytest.raises(SpecError, match=r"types\.0\.rate_per_s: 'in9' is not among in0-out0"):
        load_fleet_problem(tmp_path / "wrong.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN["scenario"])
def test_scenarios_cost_no_more_than_is_known(name: str) -> None:
    found = capacity(catalog.scenario(str(FOLDER / f"{name}.toml")))
    known = KNOWN["scenario"][name]
    assert found.certificate.value <= known["value"] * 1.001
    assert found.certificate.bound == pytest.approx(known["bound"], rel=1e-3)
    for pool in found.pools:
        assert max(pool.planned.plan.predicted.slo_violations.values()) <= 0.05
