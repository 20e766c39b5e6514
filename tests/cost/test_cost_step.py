from __future__ import annotations

from operator import attrgetter

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.breakdown import breakdown
from optsched.cost.evaluate import evaluate_configurations, evaluate_steps, stack
from optsched.cost.features import StepFeatures, attended_pairs
from optsched.cost.operations import Gemm
from optsched.cost.precision import double_precision, scalar
from optsched.cost.rates import peak_flops_per_s
from optsched.cost.roofline import ROOFLINE_BLEND, smooth_max
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.step import dynamic_energy, step_time
from optsched.cost.tier import TierParameters
from optsched.cost.transformer import communications, compute_operations
from optsched.domain.gemm_law import GemmLaw
from optsched.domain.hardware import Gpu, Tier
from optsched.errors import SpecError

LLMS = ("qwen3-0.6b", "opt-13b", "llama-3.1-8b", "mixtral-8x7b", "deepseek-v3")
SHAPES = {(name, tp): LlmShape.of(catalog.llm(name), Layout(tp)) for name in LLMS for tp in (1, 4)}
TIER = TierParameters.of(Tier(catalog.gpu("a40"), 250.0), catalog.llm("qwen3-0.6b"), catalog.link("nvlink2-bridge-a40"))
RESOURCES = (
    "flops_per_s", "memory_bytes_per_s", "link_bytes_per_s", "network_bytes_per_s", "cap_w", "gemm.compute", "gemm.memory",
    "prefill_attention.compute", "decode_attention.memory", "experts.compute", "elementwise.memory", "collectives.all_reduce.bandwidth",
)  # fmt: skip
COSTS = (
    "layer_overhead_s", "step_overhead_s", "sequence_overhead_s", "link_latency_s", "network_latency_s", "gemm.half_rows",
    "gemm.half_inner", "gemm.half_outer", "gemm.launch_s", "prefill_attention.launch_s", "experts.half_rows", "collectives.all_reduce.hops",
)  # fmt: skip

shapes = st.sampled_from(sorted(SHAPES)).map(SHAPES.__getitem__)


@st.composite
def steps(draw: st.DrawFn) -> StepFeatures:
    new, context = draw(st.integers(0, 20_000)), draw(st.integers(0, 50_000))
    batch = draw(st.integers(0 if new else 1, 300))
    cached = batch * draw(st.integers(1, 20_000))
    hidden = cached * draw(st.sampled_from([0.0, 0.3, 1.0]))
    return StepFeatures.of(
        prefill_tokens=float(new),
        pairs=float(attended_pairs(new, context)),
        decode_sequences=float(batch),
        kv_tokens=cached - hidden,
        hidden_tokens=hidden,
    )


def changed(tier: TierParameters, name: str, factor: float) -> TierParameters:
    find = attrgetter(name)
    return eqx.tree_at(find, tier, scalar(float(find(tier)) * factor))


_time = jax.jit(step_time)
_dynamic = jax.jit(dynamic_energy)


@double_precision
def seconds(tier: TierParameters, shape: LlmShape, features: StepFeatures) -> float:
    return float(_time(tier, shape, features))


@given(shape=shapes, features=steps(), name=st.sampled_from(RESOURCES), factor=st.floats(1.0, 1.15))
def test_more_of_any_resource_never_slows_a_step(shape: LlmShape, features: StepFeatures, name: str, factor: float) -> None:
    assert seconds(changed(TIER, name, factor), shape, features) <= seconds(TIER, shape, features) * (1 + 1e-12)


@given(shape=shapes, features=steps(), name=st.sampled_from(COSTS), factor=st.floats(1.0, 10.0))
def test_more_overhead_never_speeds_up_a_step(shape: LlmShape, features: StepFeatures, name: str, factor: float) -> None:
    assert seconds(changed(TIER, name, factor), shape, features) >= seconds(TIER, shape, features) * (1 - 1e-12)


@given(shape=shapes, features=steps())
def test_time_is_never_below_the_datasheet_speed_of_light(shape: LlmShape, features: StepFeatures) -> None:
    with jax.enable_x64(True):
        work = compute_operations(shape, features).values()
        sent = communications(shape, features, TIER.gpus_per_node).values()
    flops = sum(float(each.flops) for each in work) / float(TIER.flops_per_s)
    read = sum(float(each.bytes) for each in work) / float(TIER.memory_bytes_per_s)
    link = sum(float(each.bytes) for each in sent) / float(TIER.link_bytes_per_s)
    assert seconds(TIER, shape, features) >= max(flops, read, link)


@given(shape=shapes, features=steps())
def test_power_stays_between_idle_and_the_cap(shape: LlmShape, features: StepFeatures) -> None:
    tier = changed(TIER, "link_j_per_byte", 0.0)
    with jax.enable_x64(True):
        watts = float(_dynamic(tier, shape, features)) / seconds(tier, shape, features) / float(shape.tp)
    assert 0 < watts <= (250.0 - 77.0) * (1 + 1e-9)


@given(first=st.floats(0, 1e3), second=st.floats(0, 1e3), more=st.floats(0, 1e3))
def test_the_smooth_maximum_is_a_monotone_upper_bound_within_its_blend(first: float, second: float, more: float) -> None:
    with jax.enable_x64(True):
        value = float(smooth_max(scalar(first), scalar(second), 0.1))
        grown = float(smooth_max(scalar(first + more), scalar(second), 0.1))
    largest = max(first, second)
    assert largest <= value * (1 + 1e-12) + 1e-29
    assert value <= 1.1 * largest * (1 + 1e-9) + 1e-29
    assert value <= grown * (1 + 1e-12) + 1e-25


def under(law: GemmLaw) -> TierParameters:
    card = catalog.gpu("a100-40gb")
    card = card.replace(efficiency=card.efficiency.replace(gemm={"bf16": law}))
    return TierParameters.of(Tier(card, card.datasheet.power_w), catalog.llm("opt-13b"))


def test_a_large_matrix_product_takes_flops_over_achieved_rate() -> None:
    # 8,192 rows through the feed-forward of OPT-13B (4 d^2 weights in its first half, d 5120, 40 layers) on an A100: 312 TFLOP/s (NVIDIA A100
    # datasheet, bf16 dense) x 0.7, less what the ramps take: 64 of 8,192 rows, 120 of 5,120 inner, 20 of 20,480 outer, and an
    # idle wave of 1,200 x (40 + 8192 x 200 / 8392) tiles' worth. Far from the memory limit.
    tier = under(GemmLaw(compute=0.7, half_rows=64.0))
    rows = breakdown(tier, SHAPES["opt-13b", 1], StepFeatures.of(prefill_tokens=8192.0))
    found = next(row for row in rows if row.name == "feed forward in")
    area = (8192 + 64) * (20480 + 20) + 1200 * (40 + 8192 * 200 / 8392)
    by_hand = 2 * area * (5120 + 120) * 40 / (312e12 * 0.7)
    assert found.resource == "compute"
    assert by_hand <= found.seconds <= by_hand * 1.02


def test_one_decoding_sequence_takes_weights_over_achieved_bandwidth() -> None:
    # OPT-13B in 16 bits: 4 d^2 x 40 x 2 B = 8.4 GB of feed-forward weights at 1,555 GB/s (NVIDIA A100 40 GB datasheet) x 0.82.
    tier = under(GemmLaw(memory=0.82))
    rows = breakdown(tier, SHAPES["opt-13b", 1], StepFeatures.of(decode_sequences=1.0, kv_tokens=1000.0))
    found = next(row for row in rows if row.name == "feed forward in")
    by_hand = 4 * 5120**2 * 40 * 2 / (1555e9 * 0.82)
    assert found.resource == "memory"
    assert by_hand <= found.seconds <= by_hand * (1 + ROOFLINE_BLEND)


@given(shape=shapes, features=steps())
def test_the_breakdown_adds_up_to_the_step(shape: LlmShape, features: StepFeatures) -> None:
    assert sum(row.seconds for row in breakdown(TIER, shape, features)) == pytest.approx(seconds(TIER, shape, features), rel=1e-9)


def test_many_configurations_at_once_equal_one_by_one() -> None:
    llm = catalog.llm("llama-3.1-8b")
    tiers = [TierParameters.of(catalog.tier(name), llm) for name in ("l4", "a10g", "h100-sxm@500W")]
    features = [StepFeatures.of(prefill_tokens=float(n), pairs=n * n / 2.0, decode_sequences=3.0) for n in (10, 100, 1000)]
    shape = SHAPES["llama-3.1-8b", 1]
    together = evaluate_configurations(stack(tiers), stack([shape] * 3), stack(features))
    for index, (tier, each) in enumerate(zip(tiers, features, strict=True)):
        alone = evaluate_steps(tier, shape, each.rows())
        assert together.seconds[index] == pytest.approx(alone.seconds[0], rel=1e-12)
        assert together.joules[index] == pytest.approx(alone.joules[0], rel=1e-12)


def test_the_cost_model_runs_in_double_precision_whatever_the_process_says() -> None:
    with jax.enable_x64(False):
        costs = evaluate_steps(TIER, SHAPES["opt-13b", 1], StepFeatures.of(prefill_tokens=np.array([1e5]), pairs=5e9))
        assert costs.seconds.dtype == np.float64
        assert not jax.config.jax_enable_x64


def test_weights_without_tensor_units_run_at_the_rate_they_are_expanded_to() -> None:
    card = catalog.gpu("a100-40gb")
    assert peak_flops_per_s(Tier(card, 400.0), "fp8") == card.datasheet.flops_per_s["bf16"]
    assert peak_flops_per_s(Tier(card, 400.0), "int4") == card.datasheet.flops_per_s["bf16"]


def test_a_card_without_a_usable_rate_is_refused() -> None:
    card = catalog.gpu("a40")
    sheet = card.datasheet.replace(flops_per_s={"bf16": 1e14})
    bare: Gpu = card.replace(datasheet=sheet)
    with pytest.raises(SpecError, match="a40 has no FLOP rate for fp32 weights; its datasheet lists bf16"):
        peak_flops_per_s(Tier(bare, 300.0), "fp32")


@pytest.mark.parametrize("tier", ["h100-sxm", "h200", "a100-80gb", "l40s", "b200", "rtx-pro-6000", "a40"])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
def test_no_operation_of_a_fitted_card_is_faster_than_its_datasheet(tier: str, name: str) -> None:
    llm, place = catalog.llm(name), catalog.tier(tier)
    with jax.enable_x64(True):
        parameters, shape = TierParameters.of(place, llm), LlmShape.of(llm)
        for features in (
            StepFeatures.of(decode_sequences=1.0, kv_tokens=1000.0),
            StepFeatures.of(decode_sequences=256.0, kv_tokens=500_000.0, hidden_tokens=100_000.0),
            StepFeatures.of(prefill_tokens=16.0, pairs=128.0),
            StepFeatures.of(prefill_tokens=16_384.0, pairs=16_384.0**2 / 2),
        ):
            for key, each in compute_operations(shape, features).items():
                wide = key.endswith("attention") or key in ("lm_head", "router")
                peak = float(parameters.wide_card.flops_per_s if wide else parameters.flops_per_s)
                moved = float(each.bytes)
                # Published passes and products (elementwise.fit, gemm.fit) find activations just written in the card's cache,
                # so there only weights are sure to come from memory.
                if float(each.once_bytes) < 4 * (place.gpu.datasheet.cache_bytes or 0.0) and not key.endswith("attention"):
                    moved = float(each.count * each.inner * each.outer * each.weight_bytes) if isinstance(each, Gemm) else 0.0
                light = max(float(each.flops) / peak, moved / place.gpu.datasheet.memory_bytes_per_s)
                assert float(each.seconds(parameters)) >= light * (1 - 1e-9), (key, features)
