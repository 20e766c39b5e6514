"""Problems refuse contradictions, plans are refereed, files are read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batch_problems import best_by_enumeration, problems
from hypothesis import given
from hypothesis import strategies as st

from optsched.batching import BatchPlan, BatchProblem
from optsched.batching.problem_file import KIND, BatchProblemFile, read_problem
from optsched.batching.solved import relative_gap
from optsched.errors import ProblemError, SpecError
from optsched.files import save

GOOD: dict[str, object] = {
    "pending_s": [1.0, 2.0], "kv_blocks": [4, 6], "hidden_blocks": [2, 3], "hidden_penalty_s": [0.1, 0.2], "memory_blocks": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pending_s": [1.0, float("nan")]}, r"Request 1 has pending_s nan; it must be finite\. Correct pending_s\[1\]"),
        ({"hidden_penalty_s": [float("inf"), 0]}, r"Request 0 has hidden_penalty_s inf; it must be finite"),
        ({"pending_s": [-0.5, 1.0]}, r"Request 0 has pending_s -0\.5; it must not be negative"),
        ({"kv_blocks": [4, -6]}, r"Request 1 has kv_blocks -6; it must not be negative"),
        ({"hidden_blocks": [2.5, 3]}, r"Request 0 has hidden_blocks 2\.5; it must be a whole number"),
        ({"kv_blocks": [2**60, 1]}, r"Request 0 has kv_blocks .*; it is too large to be counted exactly"),
        ({"kv_blocks": [4]}, r"kv_blocks has 1 entries, pending_s 2; there must be one per request\. Request 1 is the first"),
        ({"kv_blocks": [[4, 6], [1, 2]]}, r"kv_blocks has 2 dimensions"),
        ({"kv_blocks": ["many", "few"]}, r"kv_blocks holds values that are not numbers"),
        ({"memory_blocks": -1}, r"memory_blocks is -1; it must be a whole number from 0"),
        ({"memory_blocks": 2.5}, r"memory_blocks is 2\.5; it must be a whole number"),
        ({"memory_blocks": "much"}, r"memory_blocks is much; it must be a whole number"),
        ({"max_sequences": True}, r"max_sequences is True; it must be a whole number"),
        ({"tokens": [1, 2]}, r"tokens is given without token_budget"),
        ({"token_budget": 5}, r"token_budget is given without tokens"),
    ],
)
def test_contradictory_data_name_request_value_rule_and_knob(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ProblemError, match=says):
        BatchProblem(**{**GOOD, **changes})  # type: ignore[arg-type]


def test_a_problem_does_not_change_when_its_source_does() -> None:
    pending = np.array([1.0, 2.0])
    problem = BatchProblem(**{**GOOD, "pending_s": pending})  # type: ignore[arg-type]
    pending[0] = 9.0
    assert problem.pending_s.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        problem.pending_s[0] = 3.0


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            [2, 2],
            [
                "The plan takes 10 blocks; memory_blocks is 7.",
                "The plan takes 7 tokens; token_budget is 6.",
                "The plan takes 2 requests; max_sequences is 1.",
            ],
        ),
        ([1, 1], ["The plan takes 7 tokens; token_budget is 6.", "The plan takes 2 requests; max_sequences is 1."]),
        ([0, 3], ["Request 1 has choice 3; it must be 0 (skip), 1 (hidden) or 2 (KV)."]),
        ([1], ["The plan chooses for 1 requests; the problem has 2."]),
        ([0, 2], []),
    ],
)
def test_the_referee_names_every_broken_rule(choice: list[int], says: list[str]) -> None:
    problem = BatchProblem(**GOOD, tokens=[3, 4], token_budget=6, max_sequences=1)  # type: ignore[arg-type]
    assert BatchPlan(np.array(choice, np.int8)).violations(problem) == says


@given(problem=problems(max_requests=3, rows=None), data=st.data())
def test_no_plan_that_the_referee_accepts_beats_the_enumeration(problem: BatchProblem, data: st.DataObject) -> None:
    num = problem.num_requests
    plan = BatchPlan(np.array(data.draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)), np.int8))
    if not plan.violations(problem):
        assert plan.value(problem) <= best_by_enumeration(problem) + 1e-9


@pytest.mark.parametrize(("value", "bound", "gap"), [(4.0, 5.0, 0.25), (4.0, 4.0, 0.0), (None, 4.0, None), (0.0, 1.0, None)])
def test_the_gap_is_relative_to_the_value(value: float | None, bound: float, gap: float | None) -> None:
    assert relative_gap(value, bound) == gap


@given(problem=problems(rows=None))
def test_a_written_problem_is_read_back(tmp_path_factory: pytest.TempPathFactory, problem: BatchProblem) -> None:
    path = tmp_path_factory.mktemp("problems") / "problem.json"
    fields = {name: getattr(problem, name) for name in BatchProblemFile.model_fields}
    record = BatchProblemFile(
        **{name: field.tolist() if isinstance(field, np.ndarray) else field for name, field in fields.items()}
    )
    save(record, KIND, path)
    again = read_problem(path)
    for name, field in fields.items():
        np.testing.assert_array_equal(getattr(again, name), field)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(memory=3), r"problem\.json: memory: unknown key"),
        (lambda data: data.pop("pending_s"), r"problem\.json: pending_s: missing"),
        (lambda data: data.update(kv_blocks=[4.5, 6]), r"kv_blocks\.0: 4\.5: input should be a valid integer"),
        (lambda data: data.update(kv_blocks=[4]), r"problem\.json: kv_blocks has 1 entries"),
        (lambda data: data.update(version=2), r"version: 2: this optsched reads version 1"),
        (lambda data: data.update(schema="optsched/plan"), r"schema: 'optsched/plan': expected 'optsched/batch-problem'"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, change: Callable[[dict[str, object]], None], says: str) -> None:
    data: dict[str, object] = {"schema": "optsched/batch-problem", "version": 1, **GOOD}
    change(data)
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SpecError, match=says):
        read_problem(path)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'numba', 'numpy', 'pulp', 'scipy', 'highspy', 'jax'}"
    code = f"import sys, optsched.batching, optsched.batching.policies; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["import optsched.batching.solver, ", "import "])
def test_the_public_names_are_importable_in_any_order(first: str) -> None:
    code = f"{first}optsched.batching; from optsched.batching import BatchProblem, solve; assert callable(solve)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import optsched.batching

    with pytest.raises(AttributeError, match="no attribute 'solv'"):
        optsched.batching.solv  # type: ignore[attr-defined]  # noqa: B018
