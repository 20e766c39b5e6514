from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.power import SLOW_CLOCK, Limits, Load, PowerParameters, demand_w, power_factor, step_clock, step_power_w
from optsched.cost.precision import double_precision, scalar
from optsched.cost.tables import replica_parameters
from optsched.domain.hardware import Tier
from optsched.domain.power_law import PowerLaw

shares = st.floats(0.05, 1.0)


@st.composite
def laws(draw: st.DrawFn) -> PowerLaw:
    return PowerLaw(
        active=draw(st.floats(0.02, 0.4)),
        clock_linear=draw(st.floats(0.1, 1.0)),
        clock_exponent=draw(st.floats(1.0, 16.0)),
        sharpness=draw(st.floats(2.0, 15.0)),
    )


@st.composite
def loads(draw: st.DrawFn) -> Load:
    """One second of work at the full clock, of which a part computes and follows the clock; up to twice the board's limit."""
    follows = draw(st.floats(0.0, 1.0))
    slow_s = 1.0 + follows * (1.0 / SLOW_CLOCK - 1.0)
    return Load(scalar(follows * draw(st.floats(0.0, 500.0))), scalar(draw(st.floats(0.0, 300.0))), scalar(1.0), scalar(slow_s))


def limits(cap_w: float) -> Limits:
    return Limits(scalar(100.0), scalar(400.0), scalar(cap_w))


@jax.jit
def _solved(law: PowerParameters, limit: Limits, work: Load) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    clock = step_clock(law, limit, work)
    seconds = work.seconds_at(clock)
    demand = demand_w(law, limit, work, clock, seconds)
    return clock, step_power_w(law, limit, work, clock, seconds), demand, power_factor(law, clock)


_slope = jax.jit(jax.grad(lambda cap, law, limit, work: step_clock(law, Limits(limit.idle_w, limit.board_w, cap), work)))


@double_precision
def found(law: PowerLaw, work: Load, cap_w: float) -> tuple[float, float, float, float]:
    """Return clock and power above idle of a step under a cap, its demand, and the power factor of the clock."""
    return tuple(map(float, _solved(PowerParameters.of(law), limits(cap_w), work)))  # type: ignore[return-value]


@given(law=laws(), work=loads(), cap_w=st.floats(150.0, 390.0), more=st.floats(1.0, 50.0))
def test_a_higher_cap_never_slows_the_clock_and_never_lowers_the_power(
    law: PowerLaw, work: Load, cap_w: float, more: float
) -> None:
    clock, watts, *_ = found(law, work, cap_w)
    faster, higher, *_ = found(law, work, min(cap_w + more, 400.0))
    assert clock <= faster * (1 + 1e-9)
    assert watts <= higher * (1 + 1e-9)


@given(law=laws(), work=loads(), cap_w=st.floats(150.0, 400.0))
def test_power_stays_below_the_cap_wherever_the_clock_can_follow(law: PowerLaw, work: Load, cap_w: float) -> None:
    clock, watts, *_ = found(law, work, cap_w)
    assert 0 < clock <= 1 + 1e-9
    assert 0 < watts <= (cap_w - 100.0) * (1 + 1e-6)


@given(law=laws(), work=loads())
def test_at_the_limit_of_the_board_the_clock_is_the_full_one(law: PowerLaw, work: Load) -> None:
    assert found(law, work, 400.0)[0] == pytest.approx(1.0, abs=1e-12)


@given(law=laws(), work=loads(), cap_w=st.floats(150.0, 400.0))
def test_the_clock_solves_its_equation(law: PowerLaw, work: Load, cap_w: float) -> None:
    _, _, demand, factor = found(law, work, cap_w)
    full = law.active * 300 + float(work.compute_j) + float(work.memory_j)
    k = law.sharpness
    assert factor**k * (1 + (demand / (cap_w - 100)) ** k) == pytest.approx(1 + (full / 300) ** k, rel=1e-6)


@given(law=laws(), work=loads(), cap_w=st.floats(160.0, 390.0))
def test_the_derivative_of_the_clock_equals_finite_differences(law: PowerLaw, work: Load, cap_w: float) -> None:
    with jax.enable_x64(True):
        by_rule = float(_slope(scalar(cap_w), PowerParameters.of(law), limits(cap_w), work))
    by_hand = (found(law, work, cap_w + 1e-3)[0] - found(law, work, cap_w - 1e-3)[0]) / 2e-3
    assert by_rule == pytest.approx(by_hand, rel=1e-3, abs=1e-8)


@given(share=shares, law=laws())
def test_the_clock_of_a_power_share_has_that_share_of_the_power(share: float, law: PowerLaw) -> None:
    clock = law.clock(share)
    assert law.clock_linear * clock + (1 - law.clock_linear) * clock**law.clock_exponent == pytest.approx(share, rel=1e-9)


def test_work_that_follows_the_clock_alone_draws_the_smaller_of_demand_and_cap_with_a_rounded_corner() -> None:
    # W = 45 + 255 = 300 W above idle equals the board's limit of 300 W: 300 / 2^(1/6) at the board, (300^-6 + 150^-6)^(-1/6) at 250 W.
    work = Load(scalar(255.0), scalar(0.0), scalar(1.0), scalar(1.0 / SLOW_CLOCK))
    law = PowerLaw(active=0.15, sharpness=6.0)
    assert found(law, work, 400.0)[1] == pytest.approx(300 / 2 ** (1 / 6), rel=1e-9)
    assert found(law, work, 250.0)[1] == pytest.approx((300.0**-6 + 150.0**-6) ** (-1 / 6), rel=1e-6)


@pytest.mark.parametrize("gpu", ["a40", "a100-80gb", "h100-sxm"])
def test_a_deeper_cap_saves_power_and_never_time(gpu: str) -> None:
    llm, board_w = catalog.llm("llama-3.1-8b"), catalog.gpu(gpu).datasheet.power_w
    steps = StepFeatures.of(
        prefill_tokens=np.array([0.0, 2048.0, 8192.0]),
        pairs=np.array([0.0, 2048.0**2 / 2, 8192.0**2 / 2]),
        decode_sequences=np.array([64.0, 16.0, 0.0]),
        kv_tokens=np.array([64e3, 16e3, 0.0]),
    )
    before_s, before_w = np.zeros(3), np.full(3, np.inf)
    for share in (1.0, 0.85, 0.7, 0.6):
        costs = evaluate_steps(*replica_parameters(llm, Tier(catalog.gpu(gpu), share * board_w)), steps)
        watts = costs.joules / costs.seconds
        assert np.all(costs.seconds >= before_s)
        assert np.all(watts <= before_w * (1 + 1e-12))
        assert np.all(watts <= share * board_w * (1 + 1e-9))
        before_s, before_w = costs.seconds, watts


def test_a_decoder_on_the_launch_floor_draws_more_than_idle_power_and_half_the_board_at_most() -> None:
    llm = catalog.llm("qwen3-0.6b")
    costs = evaluate_steps(
        *replica_parameters(llm, catalog.tier("a40")), StepFeatures.of(decode_sequences=np.ones(1), kv_tokens=100.0)
    )
    assert 1.3 * 77 < costs.joules[0] / costs.seconds[0] < 0.6 * 300
