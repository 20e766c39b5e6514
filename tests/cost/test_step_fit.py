"""A fit of whole steps recovers what made them, leans on its prior, and never sees what is held out."""

from __future__ import annotations

import equinox as eqx
import numpy as np
import pytest

from optsched import catalog
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.step_cases import decode_batch, prefill_batch, run_cases, step_cases
from optsched.cost.step_fit import FittedSteps, Free, StepCase, fit_steps
from optsched.cost.tables import replica_parameters
from optsched.cost.tier import TierParameters
from optsched.errors import ProblemError
from optsched.profiles.steps import RunRows, StepRows

LLM = catalog.llm("llama-3.1-8b")
TIER, SHAPE = replica_parameters(LLM, catalog.tier("h100-sxm"))
STEPS = [prefill_batch(1.0, float(n)) for n in (128, 1024, 4096)] + [
    decode_batch(float(b), float(c)) for b, c in ((1, 100), (16, 500), (64, 2000), (256, 500))
]
TRUTH = {"layer_overhead_s": 2e-4, "step_overhead_s": 5e-3, "sequence_overhead_s": 1e-4, "power.active": 0.25}
# One GPU has no link, so that the steps say nothing of the last one.
FREE = {name: Free(prior, 2.0) for name, prior in zip(TRUTH, (1e-4, 2e-3, 2e-5, 0.12), strict=True)} | {
    "link_latency_s": Free(3e-6)
}


def true_tier() -> TierParameters:
    tier = eqx.tree_at(lambda each: each.power.active, TIER, np.asarray(TRUTH["power.active"]))
    for name in ("layer_overhead_s", "step_overhead_s", "sequence_overhead_s"):
        tier = eqx.tree_at(lambda each, name=name: getattr(each, name), tier, np.asarray(TRUTH[name]))
    return tier


def cases(noise: float = 0.0) -> list[StepCase]:
    draw, found = np.random.default_rng(0), []
    for steps in STEPS:
        costs = evaluate_steps(true_tier(), SHAPE, steps)
        watts = float(costs.joules[0] / costs.seconds[0])
        found.append(StepCase(TIER, SHAPE, steps, np.ones(1), float(costs.seconds[0] * np.exp(noise * draw.normal())), watts))
    return found


ALL = np.ones(len(STEPS), bool)


@pytest.fixture(scope="module")
def exact() -> FittedSteps:
    return fit_steps(cases(), FREE, ALL, seconds_error=1e-3, watts_error=1e-3)


def test_a_fit_recovers_the_coefficients_that_made_the_steps(exact: FittedSteps) -> None:
    for name, value in TRUTH.items():
        assert exact.values[name] == pytest.approx(value, rel=0.01)
    assert exact.seconds == pytest.approx([case.seconds for case in cases()], rel=1e-3)
    assert exact.watts == pytest.approx([case.watts for case in cases()], rel=1e-3)
    assert exact.covariance.shape == (5, 5)
    assert np.all(np.linalg.eigvalsh(exact.covariance) > 0)


def test_held_out_steps_are_predicted_and_never_fitted_to(exact: FittedSteps) -> None:
    wrong = [*cases()[:-1], StepCase(TIER, SHAPE, STEPS[-1], np.ones(1), seconds=99.0, watts=1.0)]
    train = np.array([True] * (len(STEPS) - 1) + [False])
    found = fit_steps(wrong, FREE, train, seconds_error=1e-3, watts_error=1e-3)
    assert found.seconds[-1] == pytest.approx(exact.seconds[-1], rel=0.02)


def test_without_evidence_a_coefficient_stays_at_its_prior(exact: FittedSteps) -> None:
    assert exact.values["link_latency_s"] == pytest.approx(3e-6, rel=1e-6)
    assert np.sqrt(exact.covariance[-1, -1]) == pytest.approx(FREE["link_latency_s"].reach, rel=1e-6)


def test_coefficients_stay_within_their_range() -> None:
    found = fit_steps(cases(), {**FREE, "step_overhead_s": Free(2e-3, 2.0, high=3e-3)}, ALL)
    assert found.values["step_overhead_s"] <= 3e-3 * (1 + 1e-9)


def test_a_fit_of_nothing_is_refused() -> None:
    with pytest.raises(ProblemError, match="no case is left to fit to; give measured steps, or hold fewer out"):
        fit_steps(cases(), FREE, ~ALL)


def test_published_rows_become_the_steps_they_describe() -> None:
    one, text = np.ones(2), np.array(["llama-3.1-8b"] * 2)
    steps = StepRows(
        kind=np.array(["prefill", "decode"]), llm=text, gpu=np.array(["h100-sxm"] * 2), engine=np.array(["x"] * 2),
        tp=np.ones(2, np.int64), sequences=4 * one, new_tokens=np.array([512.0, 1.0]), context_tokens=np.array([0.0, 600.0]),
        seconds=one, source="a test",
    )  # fmt: skip
    prefill, decode = step_cases(steps, lambda llm, gpu, tp, engine: (TIER, SHAPE))
    assert float(prefill.steps.prefill_tokens[0]) == 2048
    assert float(prefill.steps.pairs[0]) == 4 * 512**2 / 2
    assert float(prefill.steps.emitting[0]) == 4
    assert float(decode.steps.kv_tokens[0]) == 2400
    runs = RunRows(
        llm=text, gpu=np.array(["h100-sxm"] * 2), engine=np.array(["x"] * 2), tp=np.ones(2, np.int64), sequences=2 * one,
        prompt_tokens=100 * one, output_tokens=11 * one, seconds=one, prefill_s=one, power_share=0.5 * one, source="a test",
    )  # fmt: skip
    run = run_cases(runs, lambda llm, gpu, tp, engine: (TIER, SHAPE), lambda gpu: 700.0)[0]
    assert run.repeats.tolist() == [1, 10]
    assert run.watts == 350
    assert steps.where(np.array([True, False])).keys() == ["prefill tp1 b4 n512 c0"]
    assert runs.keys()[0] == "run tp1 b2 n100 o11"
