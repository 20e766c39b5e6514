"""Routed experts: measured points, the speed of light, expected loads against drawn ones, smooth and monotone."""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.experts import ExpertsParameters, busiest_load, experts_s, touched_experts
from optsched.cost.precision import scalar
from optsched.cost.roofline import Card
from optsched.domain.experts_law import ExpertsLaw

H100 = catalog.gpu("h100-sxm")
CARD = Card(scalar(H100.datasheet.flops_per_s["bf16"]), scalar(H100.datasheet.memory_bytes_per_s), scalar(1.0))
TIME = jax.jit(experts_s)
TOUCHED, BUSIEST = jax.jit(touched_experts), jax.jit(busiest_load)


def seconds(law: ExpertsLaw, tokens: float, rows: float, touched: float, hidden: float, width: float, card: Card = CARD) -> float:
    numbers = map(scalar, (tokens, rows, touched, rows, hidden, width, 3.0, 2.0, 2.0))
    return float(TIME(ExpertsParameters.of(law), card, *numbers))


@pytest.mark.parametrize(
    ("tokens", "measured_s"), [(1, 258.7e-6), (8, 956.0e-6), (64, 969.2e-6), (4096, 5.6254e-3), (16384, 22.561e-3)]
)
def test_mixtral_on_h100_is_near_what_was_measured(tokens: int, measured_s: float) -> None:
    # aiconfigurator-core 0.12.0, h100_sxm/moe/vllm/0.24.0, bfloat16, d 4096, f 14336, 2 of 8 experts, balanced, one GPU.
    touched = min(8.0, 2.0 * tokens)
    light = max(touched * 3 * 4096 * 14336 * 2 / 3.35e12, 2 * 3 * 4096 * 14336 * 2 * tokens / 989.5e12)
    predicted = seconds(H100.efficiency.experts_law("bf16"), tokens, 2.0 * tokens, touched, 4096.0, 14336.0)
    assert light < measured_s
    assert light < predicted
    assert predicted == pytest.approx(measured_s, rel=0.25)


def test_even_routing_visits_the_expected_number_of_experts() -> None:
    for tokens in (1, 3, 40, 1000):
        found = float(TOUCHED(*map(scalar, (tokens, 128, 8, 4, 0.0))))
        assert found == pytest.approx(128 * (1 - (1 - 8 / 128) ** tokens) / 4, rel=1e-6)


@pytest.mark.parametrize("load_cv", [0.0, 0.25, 1.0])
def test_the_expected_number_of_visited_experts_is_that_of_drawn_routings(load_cv: float) -> None:
    random = np.random.default_rng(0)
    for tokens in (4, 16, 64):
        counts = []
        for _ in range(200):
            weights = random.gamma(1 / load_cv**2, size=64) if load_cv else np.ones(64)
            # The k largest of log w + Gumbel noise: k experts without repetition, by popularity.
            noise = random.gumbel(size=(tokens, 64)) + np.log(weights + 1e-300)
            counts.append(len(np.unique(np.argsort(-noise, axis=1)[:, :4])))
        found = float(TOUCHED(*map(scalar, (tokens, 64, 4, 1, load_cv))))
        assert found == pytest.approx(np.mean(counts), rel=0.04)


@given(experts=st.sampled_from([8, 64, 256]), groups=st.sampled_from([1, 2, 4, 8]), load_cv=st.floats(0.0, 3.0))
def test_the_busiest_group_carries_between_the_mean_and_everything(experts: int, groups: int, load_cv: float) -> None:
    load = float(BUSIEST(*map(scalar, (experts, groups, load_cv))))
    assert 1.0 <= load <= groups + 1e-9
    assert load <= float(BUSIEST(*map(scalar, (experts, groups, load_cv + 0.1)))) + 1e-12


def test_the_busiest_of_four_groups_is_near_that_of_drawn_loads() -> None:
    random = np.random.default_rng(1)
    loads = random.gamma(1 / 0.25**2, size=(4000, 4, 16)).sum(axis=2)
    drawn = float((loads.max(axis=1) / loads.mean(axis=1)).mean())
    # sqrt(2 ln g) deviations overstate the largest of a few.
    assert drawn <= float(BUSIEST(*map(scalar, (64, 4, 0.25)))) <= drawn + 0.06


LAWS = st.builds(
    ExpertsLaw, compute=st.floats(0.05, 1.0), memory=st.floats(0.05, 1.0), half_rows=st.floats(1.0, 200.0),
    order=st.floats(1.0, 10.0), passes=st.floats(0.01, 4.0), launch_s=st.floats(0.0, 1e-4),
)  # fmt: skip


@given(law=LAWS, tokens=st.integers(1, 20000), touched=st.integers(1, 128), width=st.integers(64, 16384))
def test_no_layer_is_faster_than_the_card_and_none_slower_on_a_better_one(
    law: ExpertsLaw, tokens: int, touched: int, width: int
) -> None:
    rows = max(2.0 * tokens, touched)
    time = seconds(law, tokens, rows, touched, 4096.0, width)
    matrix = 3 * 4096 * width
    assert time >= 2 * matrix * rows / float(CARD.flops_per_s) * (1 - 1e-9)
    assert time >= 2 * matrix * touched / float(CARD.memory_bytes_per_s) * (1 - 1e-9)
    for field in ("flops_per_s", "memory_bytes_per_s", "clock"):
        better = eqx.tree_at(lambda card, name=field: getattr(card, name), CARD, getattr(CARD, field) * 1.3)
        assert seconds(law, tokens, rows, touched, 4096.0, width, better) <= time * (1 + 1e-12)


@given(law=LAWS, tokens=st.floats(2.0, 20000.0))
def test_gradients_are_finite_differences(law: ExpertsLaw, tokens: float) -> None:
    parameters, step = ExpertsParameters.of(law), 1e-5

    def time(log_tokens: jax.Array, log_rate: jax.Array) -> jax.Array:
        count = jax.numpy.exp(log_tokens)
        card = Card(CARD.flops_per_s, CARD.memory_bytes_per_s * jax.numpy.exp(log_rate), CARD.clock)
        touched = touched_experts(count, scalar(64), scalar(4), scalar(2), scalar(0.3))
        rows = 2.0 * count * busiest_load(scalar(64), scalar(2), scalar(0.3))
        numbers = (count, rows, touched, rows, *map(scalar, (2048, 1024, 3, 2, 2)))
        return jax.numpy.log(TIME(parameters, card, *numbers))

    at, zero = scalar(np.log(tokens)), scalar(0.0)
    slopes = jax.grad(time, argnums=(0, 1))(at, zero)
    assert float(slopes[0]) == pytest.approx(float((time(at + step, zero) - time(at - step, zero)) / (2 * step)), abs=1e-6)
    assert float(slopes[1]) == pytest.approx(float((time(at, scalar(step)) - time(at, scalar(-step))) / (2 * step)), abs=1e-6)
