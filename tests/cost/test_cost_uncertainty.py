"""Standard errors are what drawing the coefficients at random gives; sensitivities are what changing a resource gives."""

from __future__ import annotations

from operator import attrgetter

import equinox as eqx
import jax
import numpy as np
import pytest

from optsched import catalog
from optsched.cost.estimate import decode_step, estimate, prefill_chunks
from optsched.cost.evaluate import evaluate_configurations, evaluate_steps
from optsched.cost.precision import double_precision
from optsched.cost.sensitivity import MORE, RESOURCES, elasticities, sensitivities
from optsched.cost.shape import LlmShape
from optsched.cost.tables import replica_parameters
from optsched.cost.tier import TierParameters
from optsched.cost.uncertainty import uncertainties
from optsched.domain.fit import Fit
from optsched.domain.hardware import Gpu, Tier
from optsched.domain.inheritance import without_fits

LLM, TIER = catalog.llm("qwen3-0.6b"), Tier(without_fits(catalog.gpu("a40")), 200.0)
CHUNKS, STEP = prefill_chunks(LLM, 3000, 2048), decode_step(LLM, 32, 2000)
COEFFICIENTS = {
    "gemm": ("compute", "memory", "launch_s"),
    "decode_attention": ("memory", "launch_s"),
    "power": ("gemm", "memory"),
}


def fit_of(names: tuple[str, ...], spread: float, seed: int, shapes: float | None, llms: float | None) -> Fit:
    root = np.random.default_rng(seed).normal(0, spread, (len(names), len(names)))
    return Fit(
        source="invented", date="2026-11-21", num_rows=100, train_mape=0.05, heldout_shapes_mape=shapes, heldout_llms_mape=llms,
        parameters=names, covariance=tuple(tuple(map(float, row)) for row in root @ root.T),
    )  # fmt: skip


def fitted_gpu(gpu: Gpu, spread: float = 0.02) -> Gpu:
    own = gpu.efficiency
    gemm = own.gemm_law("bf16")
    gemm = gemm.replace(compute=0.6, memory=0.7, fit=fit_of(COEFFICIENTS["gemm"], spread, 1, 0.06, 0.1))
    attention = own.decode_attention_law("bf16")
    attention = attention.replace(memory=0.7, fit=fit_of(COEFFICIENTS["decode_attention"], spread, 2, 0.04, None))
    power = own.power.replace(fit=fit_of(COEFFICIENTS["power"], spread, 3, None, None))
    return gpu.replace(efficiency=own.replace(gemm={"bf16": gemm}, decode_attention={"bf16": attention}, power=power))


FITTED = Tier(fitted_gpu(TIER.gpu), TIER.power_cap_w)


def drawn(tier: Tier, number: int) -> TierParameters:
    """Return the tier's numbers with its fitted coefficients drawn from their distribution, laws apart from each other."""
    draw, own = np.random.default_rng(0), tier.gpu.efficiency
    parameters, _ = replica_parameters(LLM, tier)
    many = repeated(parameters, number)
    for name, record in {"gemm": own.gemm["bf16"], "decode_attention": own.decode_attention["bf16"], "power": own.power}.items():
        factors = np.exp(draw.multivariate_normal(np.zeros(len(record.fit.parameters)), record.fit.covariance, number))
        law = getattr(many, name)
        for column, coefficient in enumerate(record.fit.parameters):
            law = eqx.tree_at(attrgetter(coefficient), law, getattr(record, coefficient) * factors[:, column])
        many = eqx.tree_at(attrgetter(name), many, law)
    return many


def repeated(module: eqx.Module, number: int) -> eqx.Module:
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), number), module)


@double_precision
def test_the_delta_method_gives_the_spread_that_drawing_the_coefficients_gives() -> None:
    number = 4000
    tiers, (_, shape) = drawn(FITTED, number), replica_parameters(LLM, FITTED)
    found = uncertainties(LLM, FITTED, [CHUNKS, STEP])
    for features, each in zip((CHUNKS, STEP), found, strict=True):
        rows = features.rows()
        seconds, joules = np.zeros(number), np.zeros(number)
        for index in range(len(np.asarray(rows.pairs))):
            costs = evaluate_configurations(tiers, repeated(shape, number), repeated(rows.row(index), number))
            seconds, joules = seconds + costs.seconds, joules + costs.joules
        assert each.standard_error_s == pytest.approx(seconds.std(), rel=0.1)
        assert each.standard_error_j == pytest.approx(joules.std(), rel=0.1)
        assert 0.001 < each.standard_error_s / seconds.mean() < 0.1


def test_errors_of_the_laws_are_weighted_by_their_share_of_the_time_and_the_rest_is_named() -> None:
    prefill, decode = uncertainties(LLM, FITTED, [CHUNKS, STEP])
    for each in (prefill, decode):
        assert each.model_error is not None
        assert 0 < each.model_error < 0.1
        assert set(each.unknown) <= {"prefill_attention", "elementwise"}
        assert "elementwise" in each.unknown
    assert "prefill_attention" in prefill.unknown
    assert "prefill_attention" not in decode.unknown


def test_a_tighter_fit_leaves_smaller_standard_errors_and_no_fit_leaves_none() -> None:
    wide, tight = (uncertainties(LLM, Tier(fitted_gpu(TIER.gpu, spread), 200.0), [STEP])[0] for spread in (0.02, 0.01))
    assert tight.standard_error_s == pytest.approx(wide.standard_error_s / 2, rel=1e-3)
    bare = TIER.gpu.efficiency.replace(gemm={}, prefill_attention={}, decode_attention={}, experts={})
    assumed = uncertainties(LLM, Tier(TIER.gpu.replace(efficiency=bare), 200.0), [STEP])[0]
    assert (assumed.standard_error_s, assumed.standard_error_j, assumed.model_error) == (None, None, None)


def test_a_law_of_another_data_type_adds_nothing() -> None:
    own = FITTED.gpu.efficiency
    other = own.gemm["bf16"].replace(fit=fit_of(("compute",), 3.0, 5, 0.9, 0.9))
    more = FITTED.gpu.replace(efficiency=own.replace(gemm={**own.gemm, "fp8": other}))
    assert uncertainties(LLM, Tier(more, 200.0), [STEP]) == uncertainties(LLM, FITTED, [STEP])


def test_an_estimate_carries_its_errors() -> None:
    found = estimate(LLM, FITTED, prompt_tokens=3000, batch=32, context_tokens=2000)
    prefill, decode = uncertainties(LLM, FITTED, [CHUNKS, STEP])
    assert (found.prefill_standard_error_s, found.prefill_model_error) == (prefill.standard_error_s, prefill.model_error)
    assert found.decode_step_standard_error_s == decode.standard_error_s
    assert found.decode_energy_standard_error_j_per_token == decode.standard_error_j / 32
    assert set(found.not_fitted) == {*prefill.unknown, *decode.unknown}


@pytest.mark.parametrize(("llm", "tier", "tp"), [("qwen3-0.6b", "a40@200W", 1), ("qwen3-32b", "h100-sxm", 4)])
def test_sensitivities_are_what_changing_the_resource_gives(llm: str, tier: str, tp: int) -> None:
    shape_of, place = catalog.llm(llm), catalog.tier(tier)
    parameters, shape = replica_parameters(shape_of, place, tp=tp)
    for features in (prefill_chunks(shape_of, 3000, 2048), decode_step(shape_of, 32, 2000)):

        def total(changed: TierParameters, shape: LlmShape = shape, features=features) -> float:
            return float(evaluate_steps(changed, shape, features.rows()).seconds.sum())

        def scaled(names: set[str], factor: float) -> TierParameters:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: leaf * factor if ".".join(part.name for part in path) in names else leaf, parameters
            )

        now, slopes, found = (
            total(parameters),
            elasticities(parameters, shape, features),
            sensitivities(parameters, shape, features),
        )
        for name in slopes:
            if name == "clock" or (name == "cap_w" and float(parameters.cap_w) == float(parameters.board_w)):
                continue
            difference = np.log(total(scaled({name}, 1.0005)) / total(scaled({name}, 0.9995))) / np.log(1.0005 / 0.9995)
            assert slopes[name] == pytest.approx(difference, rel=1e-3, abs=1e-5), name
        for resource, fields in RESOURCES.items():
            names = {name for name in slopes if name in fields or ("." in name and name.rpartition(".")[2] in fields)}
            if resource != "power_cap":
                assert found[resource].change == pytest.approx(total(scaled(names, MORE)) / now - 1, abs=1e-9)
                assert found[resource].elasticity == pytest.approx(sum(slopes[name] for name in names))
        assert found["compute"].change <= 0
        assert found["memory_bandwidth"].change < 0 < found["overheads"].change
        assert found["link_bandwidth"].change == 0 if tp == 1 else found["link_bandwidth"].change < 0
        assert found["power_cap"].change <= 1e-12


def test_a_cap_at_the_board_s_limit_cannot_be_raised() -> None:
    parameters, shape = replica_parameters(LLM, catalog.tier("a40"))
    assert sensitivities(parameters, shape, CHUNKS)["power_cap"].change == 0
