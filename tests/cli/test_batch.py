"""The batch and warm-up commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optsched.cli import invoke

PROBLEM = {
    "schema": "optsched/batch-problem", "version": 1, "pending_s": [3.0, 2.0], "kv_blocks": [4, 4], "hidden_blocks": [2, 2],
    "hidden_penalty_s": [0.5, 0.1], "memory_blocks": 6,
}  # fmt: skip


@pytest.fixture
def problem(tmp_path: Path) -> str:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(PROBLEM), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("method", ["exact", "greedy", "greedy-fill", "milp"])
def test_json_holds_status_value_bound_gap_choice_and_runtime(
    problem: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["batch", problem, "--method", method, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"status", "value", "bound", "gap", "choice", "runtime_s"} <= set(answer)
    assert answer["status"] == "OPTIMAL"
    assert answer["choice"] == [2, 1]
    assert answer["value"] == answer["bound"] == 4.9
    assert answer["gap"] == 0.0


def test_the_relaxation_has_a_bound_and_no_choice(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["batch", problem, "--method", "lp", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["choice"] is None
    assert answer["value"] is None
    assert answer["bound"] == pytest.approx(4.9)


def test_people_get_a_table(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["batch", problem]) == 0
    out = capsys.readouterr().out
    assert "hidden" in out
    assert "2 of 2 requests, 6 of 6 blocks" in out
    assert "OPTIMAL: value 4.9 s, bound 4.9 s, gap 0" in out
    assert invoke(["batch", problem, "--method", "lp"]) == 0
    assert "NO_PLAN: value -, bound 4.9 s" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "says"), [("0", "0: must be a positive"), ("-1", "-1: must be"), ("nan", "nan: must be")])
def test_a_time_limit_must_be_positive(problem: str, limit: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["batch", problem, f"--time-limit-s={limit}"]) == 1
    err = capsys.readouterr().err
    assert f"--time-limit-s: {says}" in err


def test_an_unknown_method_is_wrong_usage(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["batch", problem, "--method", "magic"]) == 2
    assert "magic" in capsys.readouterr().err


def test_packaged_instances_reach_their_best_known_values(capsys: pytest.CaptureFixture[str]) -> None:
    from optsched.catalog import data_root
    from optsched.files import read_toml

    folder = data_root() / "instances" / "batching"
    best_known = read_toml(folder / "best_known.toml")["value_s"]
    assert {path.stem for path in folder.glob("*.json")} == set(best_known)
    for name, best in best_known.items():
        assert invoke(["batch", str(folder / f"{name}.json"), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["status"] == "OPTIMAL"
        assert answer["value"] == pytest.approx(best, rel=1e-12)


def test_warm_up_compiles_and_says_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["warm-up", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runtime_s"]["batching"] > 0
    assert invoke(["warm-up"]) == 0
    assert "batching" in capsys.readouterr().out
