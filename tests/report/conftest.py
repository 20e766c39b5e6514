"""A plan, its execution, and a capacity answer, as reports take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_examples import planned

from optsched.domain.plan import Plan
from optsched.report.pages.plan import Executed


@pytest.fixture(scope="session")
def example() -> tuple[Plan, Executed]:
    """Return a plan, and what its simulation did."""
    plan, workload, log = planned()
    return plan, Executed(workload, log)


def _borne(factor: float, attainment: float) -> dict[str, object]:
    return {
        "factor": factor, "attainment": attainment, "met": attainment == 1, "worst_target": "ttft",
        "excess_violations": 0.95 - attainment, "ttft_p95_s": 0.4, "tpot_p95_s": 0.03, "usd_per_million_tokens": 2.0 / factor,
    }  # fmt: skip


@pytest.fixture(scope="session")
def answer_file(tmp_path_factory: pytest.TempPathFactory, example: tuple[Plan, Executed]) -> Path:
    """Return a capacity answer in a file, in the form that the command prints."""
    plan, _ = example
    row = {"gpu": "a40", "power_cap_w": 300.0, "role": "mixed", "tp": 2, "pp": 1, "count": 3}
    tried = {"utilisation": 0.95, "fleet": [row], "cost": 6.7, "met": True, "worst_target": "ttft", "excess_violations": -0.02}
    failed = {**tried, "fleet": [{**row, "count": 2}], "utilisation": None, "met": False, "excess_violations": 0.11}
    answer = {
        "fleet": [row], "cost_usd_per_hour": 6.7, "power_w": 1800.0, "predicted": plan.predicted.model_dump(mode="json"),
        "certificate": plan.certificate.model_dump(mode="json"),
        "prices": {
            "objective": "price [USD/h]", "limits": {"supply.a40": 0.25}, "one_more": {"supply.a40": 0.0},
            "demand": {"tiny:prompt 40-160": 1.5}, "rate_per_s": 1.5, "targets_1_percent_looser": None,
        },
        "utilisation": {"a40@300W x2 mixed": 0.87}, "sustained": 1.0, "iterations": [tried, failed],
        "pareto": [
            {
                "fleet": [{**row, "count": count}], "usd_per_hour": 2.2 * count, "power_w": 900.0 + 100 * count, "tightness": 1.0,
                "p95_latency_s": 30.0 / count, "chosen": count == 3,
                "simulated": [plan.predicted.model_dump(mode="json") if count == 3 else None],
            }
            for count in (2, 3, 5)
        ],
        "robustness": {
            "rate": [_borne(factor, 1.0 if factor < 1.15 else 0.8) for factor in (0.8, 1.0, 1.2)],
            "outputs": [_borne(factor, 1.0) for factor in (0.8, 1.0, 1.5)], "rate_breaks": 1.13, "outputs_break": None,
        },
        "dropped": [{"label": "a40@200W x1 mixed", "reason": "too slow for its targets"}], "of_a_later_version": 1,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("answer") / "answer.json"
    path.write_text(json.dumps(answer))
    return path
