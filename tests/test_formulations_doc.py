"""docs/formulations.md and the programs as built agree: names, indices, functions and bounds."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pulp
import pytest
from capacity_problems import melange
from factories import make_workload

from optsched.batching.horizon import HorizonFormulation
from optsched.batching.horizon_problem import HorizonProblem
from optsched.batching.milp import BatchFormulation
from optsched.batching.problem import BatchProblem
from optsched.capacity.fleet import FleetFormulation
from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo, Standalone
from optsched.domain.scenario import LatencyTarget, Role
from optsched.domain.step_law import StepLaw
from optsched.placement.bound import lower_bound
from optsched.placement.components import components
from optsched.placement.evaluate import EVALUATOR, evaluate
from optsched.placement.milp import PlacementFormulation
from optsched.placement.operating.milp import OperatingFormulation
from optsched.placement.operating.problem import OpenProblem
from optsched.placement.partition.milp import PartitionFormulation
from optsched.placement.problem import GOALS, Goal, PlacementPlan, PlacementProblem

DOC = (Path(__file__).parents[1] / "docs" / "formulations.md").read_text(encoding="utf-8")
LAW = StepLaw(
    overhead_s=2e-3, floor_s=1e-2, gemm_tokens=(1, 64, 256), gemm_s=(3e-3, 5e-3, 2e-2), pair_s=1e-6, kv_s=4e-6,
    sequence_s=1e-4, hidden_s=0.0, step_j=0.8, token_j=0.02, idle_w=40.0,
)  # fmt: skip


def part(heading: str) -> str:
    """Return the text below a heading of the second level."""
    return re.split(r"^## ", DOC, flags=re.MULTILINE)[1:][[*re.findall(r"^## (.+)$", DOC, re.MULTILINE)].index(heading)]


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of all tables whose header row ends with these columns."""
    found = re.findall(rf"^\|[^\n]*{re.escape(header)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for table in found for line in table.splitlines()]


def documented(heading: str) -> set[tuple[str, int]]:
    """Return prefix and number of indices of every constraint that a part's solver table names."""
    names = [row[1].strip("`") for row in rows(part(heading), "name in the solver | method")]
    assert names
    return {(name.split("_{")[0], name.count("{")) for name in names}


def built(program: pulp.LpProblem) -> set[tuple[str, int]]:
    """Return prefix and number of indices of the constraints as the solver knows them."""
    found = set()
    for name in (constraint.name for constraint in program.constraints()):
        indices = re.search(r"(?:_\d+)*$", name)
        assert indices is not None
        found.add((name[: indices.start()], indices.group().count("_")))
    return found


def placement_problem(objective: Goal, factor: float, roles: list[Role]) -> PlacementProblem:
    replicas = tuple(
        PlanReplica(
            id=f"r{i}", llm="tiny", gpu="a40", power_cap_w=300, role=role, kv_blocks=60, coefficients=LAW, origin="assumed",
            usd_per_hour=1.0,
        )
        for i, role in enumerate(roles)
    )  # fmt: skip
    links = tuple(
        PlanLink(source=a.id, target=b.id, latency_s=5e-3, bytes_per_s=1e6) for a in replicas for b in replicas if a != b
    )
    target = LatencyTarget(standalone_factor=factor)
    reference = Standalone(gpu="a40", power_cap_w=300, max_batched_tokens=64, coefficients=LAW)
    slo = PlanSlo(ttft=target, ttfet=target, e2e=target, standalone=reference)
    turns = [[(60, 6), (8, 10)], [(90, 4)], [(30, 12), (9, 5)]]
    return PlacementProblem(
        make_workload(turns, [0.0, 0.03, 0.06], gap_s=0.05), replicas, links, 100.0, objective=objective, slo=slo
    )


def test_every_constraint_of_the_batch_program_is_documented_and_the_other_way_round() -> None:
    problem = BatchProblem(
        [3.0, 2.0], kv_blocks=[4, 4], hidden_blocks=[2, 2], hidden_penalty_s=[0.5, 0.1], memory_blocks=6, tokens=[1, 2],
        token_budget=2, max_sequences=1,
    )  # fmt: skip
    assert built(BatchFormulation(problem).program) == documented("Batch composition")


def test_every_constraint_of_the_horizon_program_is_documented_and_the_other_way_round() -> None:
    problem = HorizonProblem(
        np.array([0, 1]), np.array([40, 20]), np.array([3, 2]), np.array([1, 2]), np.array([1, 1]), memory_blocks=5, iterations=4
    )
    for start, done in ((0, [0, 0]), (1, [1, 0])):
        program = HorizonFormulation(problem, start, 4, done).program
        assert built(program) == documented("Horizon")
        assert {(variable.name.split("_")[0], variable.name.count("_")) for variable in program.variables()} == {
            ("token", 3), ("hidden", 3),
        }  # fmt: skip


def test_every_constraint_of_the_placement_program_is_documented_and_the_other_way_round() -> None:
    names: set[tuple[str, int]] = set()
    for objective in GOALS:
        for factor in (0.5, 2.0):
            formulation = PlacementFormulation(placement_problem(objective, factor, ["prefill", "mixed", "mixed"]))
            plan = PlacementPlan(np.ones(3, np.int64), np.ones(3, np.int64))
            formulation.exclude(plan)
            formulation.learn(components(formulation.problem, plan, evaluate(formulation.problem, plan)))
            names |= built(formulation.program)
    assert names == documented("Placement")


def test_every_constraint_of_the_operating_program_is_documented_and_the_other_way_round() -> None:
    names: set[tuple[str, int]] = set()
    for objective in GOALS:
        fleet = placement_problem(objective, 2.0, ["prefill", "mixed", "decode"])
        problem = OpenProblem(fleet.workload, fleet.replicas, {"a40": 2}, fleet.links, 100.0, objective, slo=fleet.slo)
        names |= built(OperatingFormulation(problem).program)
    own = documented("Operating points")
    assert own <= names
    assert names - own <= documented("Placement")
    assert not own & documented("Placement")


def test_every_constraint_of_the_fleet_program_is_documented_and_the_other_way_round() -> None:
    names: set[tuple[str, int]] = set()
    for whole in (False, True):
        problem = replace(
            melange(whole), lost=np.ones(2, np.int64), present=np.ones(2, np.int64), change_cost=np.ones(2), resources=("gpus",),
            uses=np.ones((2, 1)), limits=np.array([9.0]),
        )  # fmt: skip
        formulation = FleetFormulation(problem)
        formulation.survive(np.ones(2))
        names |= built(formulation.program)
    assert names == documented("Fleet")


def test_every_constraint_of_the_partition_program_is_documented_and_the_other_way_round() -> None:
    problem = placement_problem("ttfet", 2.0, ["prefill", "decode", "decode"])
    many = make_workload([[(60, 6), (8, 10)]] * 3, [0.0, 0.03, 0.06], gap_s=0.05)
    names = built(PartitionFormulation(replace(problem, workload=many), limits=dict.fromkeys(GOALS, 1e9)).program)
    assert names | {("count", 0)} == documented("Partition")  # with fewer than twenty conversations none may be late


@pytest.mark.parametrize(
    ("heading", "formulation"),
    [
        ("Batch composition", BatchFormulation), ("Horizon", HorizonFormulation), ("Placement", PlacementFormulation),
        ("Fleet", FleetFormulation),
        ("Partition", PartitionFormulation), ("Operating points", OperatingFormulation),
    ],
)  # fmt: skip
def test_every_constraint_is_stated_by_a_method_that_exists(heading: str, formulation: type) -> None:
    methods = [row[2].strip("`") for row in rows(part(heading), "name in the solver | method")]
    assert methods
    assert [name for name in methods if not callable(getattr(formulation, name, None))] == []


def test_variables_are_named_as_documented() -> None:
    documented_names = set(re.findall(r"`([a-z0-9]+)(?:_[a-z])*`\)", part("Placement")))
    for objective in GOALS:
        program = PlacementFormulation(placement_problem(objective, 2.0, ["prefill", "mixed", "mixed"])).program
        assert {variable.name.split("_")[0] for variable in program.variables()} <= documented_names


def test_every_function_that_a_table_names_exists() -> None:
    paths = [row[-1].strip("`") for row in rows(DOC, "| function")]
    assert len(paths) > 20
    for path in paths:
        names = path.split(".")
        cut = next(i for i, name in enumerate(names) if i and name[0].isupper()) if path != path.lower() else len(names) - 1
        found = importlib.import_module("optsched." + ".".join(names[:cut]))
        for name in names[cut:]:
            found = getattr(found, name)
        assert callable(found), path


def test_every_component_of_the_bound_is_documented_and_the_other_way_round() -> None:
    table = {re.sub(r" ?\{.*", "", row[0].strip("`")) for row in rows(part("Placement"), "why no placement is better")}
    found = set()
    for objective in GOALS:
        for name in lower_bound(placement_problem(objective, 2.0, ["prefill", "decode"])).components:
            head, _, goal_of_energy = name.partition("work and idle over ")
            plain = re.sub(r" \d+$", "", head.partition(": ")[2] or head) if not goal_of_energy else "work and idle over"
            found.add(plain)
    assert found == table


def test_the_evaluator_has_the_name_that_certificates_carry() -> None:
    assert f"### Evaluator `{EVALUATOR}`" in DOC
