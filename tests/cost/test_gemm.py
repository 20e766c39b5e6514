"""The law of matrix products: its points, its slopes, its order, and the datasheet it stays behind."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from optsched import catalog
from optsched.cost.elementwise import ElementwiseParameters, elementwise_s
from optsched.cost.gemm import GemmParameters, gemm_bytes, gemm_flops, gemm_s, padded_rows, uncached
from optsched.cost.gemm_tables import peak_of
from optsched.cost.precision import double_precision, scalar
from optsched.cost.roofline import Card
from optsched.domain.dtypes import DTYPE_BYTES, Dtype
from optsched.domain.elementwise_law import ElementwiseLaw
from optsched.domain.gemm_law import GemmLaw

CARD = Card(flops_per_s=scalar(989.5e12), memory_bytes_per_s=scalar(3.35e12), clock=scalar(1.0))
Sizes = float | Float[np.ndarray, "..."]
ROWS = (1, 16, 128, 1024, 8192, 65536)
WIDTHS = ((32, 4096), (4096, 32), (1024, 1024), (4096, 4096), (8192, 28672), (28672, 8192))
SIZES = st.floats(1.0, 65536.0)
SHARES = st.floats(0.05, 1.0)
FITTED = [
    (gpu, dtype)
    for gpu in ("h100-sxm", "h200", "a100-80gb", "a100-40gb", "l40s", "b200", "rtx-pro-6000")
    for dtype in catalog.gpu(gpu).efficiency.gemm
]


@st.composite
def laws(draw: st.DrawFn) -> GemmLaw:
    positive = st.floats(1.0, 2000.0)
    return GemmLaw(
        compute=draw(SHARES), memory=draw(SHARES), half_rows=draw(positive), half_inner=draw(positive),
        half_outer=draw(positive), wave_outer=draw(positive), wave_rows=draw(positive), tile_rows=draw(positive),
        overlap=draw(SHARES), output=draw(st.floats(1.0, 3.0)), fixed_bytes=draw(st.floats(1.0, 1e6)),
        cache_bytes=draw(st.floats(1e5, 2e8)), cache_saving=draw(st.floats(0.01, 0.95)),
        repeated_bytes=draw(st.floats(1e5, 2e7)), converted_bytes=draw(st.sampled_from([0.0, 1.0])),
        conversion=draw(SHARES), conversion_row_s=draw(st.floats(1e-10, 1e-8)), launch_s=draw(st.floats(1e-7, 2e-5)),
    )  # fmt: skip


TIME = jax.jit(gemm_s)


@double_precision
def seconds(
    law: GemmLaw,
    rows: Sizes,
    inner: Sizes,
    outer: Sizes,
    card: Card = CARD,
    weight_bytes: float = 2.0,
    activation_bytes: float = 2.0,
    repeated: float = 0.0,
) -> Float[np.ndarray, ...]:
    sizes = (np.asarray(each, np.float64) for each in (rows, inner, outer))
    return np.asarray(TIME(GemmParameters.of(law), card, *sizes, scalar(weight_bytes), scalar(activation_bytes), repeated))


def packaged(gpu: str, dtype: Dtype, rows: Sizes, inner: Sizes, outer: Sizes, repeated: float = 1.0) -> Float[np.ndarray, ...]:
    found = catalog.gpu(gpu)
    peaks = (scalar(peak_of(found, dtype)), scalar(found.datasheet.memory_bytes_per_s))
    law = found.efficiency.gemm[dtype]
    return seconds(law, rows, inner, outer, Card(*peaks, scalar(1.0)), DTYPE_BYTES[dtype], repeated=repeated)


def test_a_large_product_takes_its_flops_at_the_share_of_the_peak() -> None:
    law = GemmLaw(compute=0.8)
    assert seconds(law, 32768, 65536, 65536) == pytest.approx(2 * 32768 * 65536**2 / (0.8 * 989.5e12), rel=0.01)


def test_one_row_takes_the_weights_at_the_share_of_the_bandwidth() -> None:
    law = GemmLaw(memory=0.85, launch_s=0.0)
    assert seconds(law, 1, 16384, 65536) == pytest.approx(16384 * 65536 * 2 / (0.85 * 3.35e12), rel=0.02)


def test_flops_and_bytes_are_counted_once() -> None:
    m, k, n = scalar(3), scalar(5), scalar(7)
    assert float(gemm_flops(m, k, n)) == 2 * 3 * 5 * 7
    assert float(gemm_bytes(m, k, n, scalar(1), scalar(2))) == 5 * 7 + 3 * (5 + 7) * 2


@pytest.mark.parametrize(
    ("gpu", "rows", "inner", "outer", "measured_us"),
    [  # aiconfigurator-core 0.12.0, systems/data/h100_sxm/gemm/vllm/0.24.0: torch linear, bf16, ms to three digits
        ("h100-sxm", 1, 4096, 4096, 15.0),
        ("h100-sxm", 64, 4096, 4096, 14.8),
        ("h100-sxm", 1, 4096, 12288, 35.6),
        ("h100-sxm", 1024, 4096, 4096, 43.1),
        ("h100-sxm", 4096, 4096, 4096, 166.0),
        ("h100-sxm", 32768, 4096, 4096, 1529.3),
        # LLMServingSim, profiler/perf/RTXPRO6000/Llama-3.1-8B/tp1/dense.csv, vLLM 0.19: another team's measurement
        ("rtx-pro-6000", 1, 14336, 4096, 85.5),
        ("rtx-pro-6000", 1024, 4096, 28672, 586.2),
        ("rtx-pro-6000", 2048, 4096, 6144, 303.0),
    ],
)
def test_published_times_are_met_within_fifteen_percent(
    gpu: str, rows: float, inner: float, outer: float, measured_us: float
) -> None:
    assert 1e6 * packaged(gpu, "bf16", rows, inner, outer) == pytest.approx(measured_us, rel=0.15)


@given(law=laws(), rows=SIZES, inner=SIZES, outer=SIZES, factor=st.floats(1.0, 8.0))
def test_more_rows_columns_or_depth_never_take_less_time(
    law: GemmLaw, rows: float, inner: float, outer: float, factor: float
) -> None:
    before = seconds(law, rows, inner, outer) * (1 - 1e-12)
    assert seconds(law, rows * factor, inner, outer) >= before
    assert seconds(law, rows, inner * factor, outer) >= before
    assert seconds(law, rows, inner, outer * factor) >= before


@given(law=laws(), rows=SIZES, inner=SIZES, outer=SIZES, factor=st.floats(1.0, 8.0))
def test_more_bandwidth_compute_or_clock_never_slow_a_product(
    law: GemmLaw, rows: float, inner: float, outer: float, factor: float
) -> None:
    before = seconds(law, rows, inner, outer) * (1 + 1e-12)
    for name in ("flops_per_s", "memory_bytes_per_s", "clock"):
        faster = replace(CARD, **{name: getattr(CARD, name) * np.float64(factor)})
        assert seconds(law, rows, inner, outer, faster) <= before


@given(law=laws(), rows=SIZES, inner=SIZES, outer=SIZES)
def test_a_step_never_reads_its_weights_or_computes_faster_than_the_datasheet(
    law: GemmLaw, rows: float, inner: float, outer: float
) -> None:
    least = max(2 * rows * inner * outer / 989.5e12, inner * outer * 2 / 3.35e12)
    assert seconds(law, rows, inner, outer) >= least


@pytest.mark.parametrize(("gpu", "dtype"), FITTED)
def test_only_products_whose_activations_stay_in_the_cache_beat_the_datasheet(gpu: str, dtype: Dtype) -> None:
    sheet, law = catalog.gpu(gpu).datasheet, catalog.gpu(gpu).efficiency.gemm[dtype]
    rows, (inner, outer) = np.array(ROWS)[:, None], np.array(WIDTHS).T[:, None, :]
    activations = rows * (inner * (law.converted_bytes or 2.0) + outer * 2.0)
    moved = inner * outer * DTYPE_BYTES[dtype] + activations
    least = np.maximum(2.0 * rows * inner * outer / peak_of(catalog.gpu(gpu), dtype), moved / sheet.memory_bytes_per_s)
    found = packaged(gpu, dtype, *np.broadcast_arrays(rows, inner, outer), repeated=0.0)
    assert np.all((found >= least) | (activations < 2 * law.cache_bytes))


def test_the_l40s_table_itself_beats_the_datasheet_where_activations_fit_its_cache() -> None:
    # 8,192 x 4,096 by 4,096 x 32 in bf16: 67.6 MB take 78 us at 864 GB/s, and 30.2 us in the table (aiconfigurator-core 0.12.0,
    # systems/data/l40s/gemm/vllm/0.24.0), because the inputs of the repetition before are in the 96 MB of L2.
    assert packaged("l40s", "bf16", 8192, 4096, 32) < 67.6e6 / 864e9
    assert packaged("l40s", "bf16", 8192, 4096, 32) == pytest.approx(30.2e-6, rel=0.35)
    assert packaged("l40s", "bf16", 32768, 4096, 32) > 268e6 / 864e9


NAMES = [name for name in GemmParameters.__dataclass_fields__ if name not in ("converted_bytes", "row_quantum")]
STEP = 1e-5


def log_seconds(x: Float[jax.Array, " P"], fixed: Float[jax.Array, " F"]) -> Float[jax.Array, ""]:
    values = {name: jnp.exp(x[index]) for index, name in enumerate(NAMES)}
    sizes = [jnp.exp(each) for each in x[len(NAMES) :]]
    parameters = GemmParameters(**values, converted_bytes=fixed[0], row_quantum=fixed[1])
    return jnp.log(gemm_s(parameters, CARD, *sizes, scalar(2.0), scalar(2.0), 1.0))


@given(law=laws(), log_sizes=st.tuples(*[st.floats(0.0, 11.0)] * 3), tile=st.sampled_from([0.0, 256.0]))
def test_gradients_are_finite_differences(law: GemmLaw, log_sizes: tuple[float, float, float], tile: float) -> None:
    # Tiles begin at multiples of four and one row later; between these the staircase is flat.
    rows = np.log(np.exp(log_sizes[0]) // 4 * 4 + 3) if tile else log_sizes[0]
    with jax.enable_x64(True):
        start = np.array([np.log(getattr(law, name)) for name in NAMES] + [rows, *log_sizes[1:]])
        steps, fixed = STEP * np.eye(len(start)), np.array([law.converted_bytes, tile])
        found = np.asarray(SLOPES(start, fixed))
        around = [np.asarray(VALUES(start + sign * steps, fixed)) for sign in (1.0, -1.0)]
    assert found == pytest.approx((around[0] - around[1]) / (2 * STEP), rel=1e-5, abs=1e-8)


SLOPES = jax.jit(jax.grad(log_seconds))
VALUES = jax.jit(jax.vmap(log_seconds, in_axes=(0, None)))


@given(held=st.floats(1e3, 1e12), cache=st.floats(1e5, 1e9), saving=st.floats(0.0, 0.99), factor=st.floats(1.0, 10.0))
def test_a_larger_working_set_never_takes_less_from_memory(held: float, cache: float, saving: float, factor: float) -> None:
    with jax.enable_x64(True):
        one, two = (float(uncached(scalar(size), scalar(cache), scalar(saving))) for size in (held, held * factor))
    assert (1 - saving) * held * (1 - 1e-12) <= one <= held
    assert two >= one * (1 - 1e-12)


def test_inputs_that_are_converted_first_cost_their_reading_and_writing() -> None:
    plain = GemmLaw(cache_saving=1e-9)
    given_fp8 = plain.replace(converted_bytes=1.0, conversion=0.5)
    rows, inner, outer = 16384.0, 8192.0, 64.0
    extra = seconds(given_fp8, rows, inner, outer) - seconds(plain, rows, inner, outer)
    read_less = rows * inner / (3.35e12 * plain.memory)  # the product then reads one byte instead of two
    assert extra == pytest.approx(rows * inner * 3 / (3.35e12 * 0.5) - read_less, rel=0.05)


@double_precision
def test_memory_passes_are_launches_and_bytes() -> None:
    law = ElementwiseParameters.of(ElementwiseLaw(memory=0.5, cache_saving=1e-9, launch_s=2e-6))
    assert float(elementwise_s(law, CARD, scalar(5), scalar(3.35e9))) == pytest.approx(5 * 2e-6 + 2e-3)
    assert float(elementwise_s(law, CARD, scalar(0), scalar(3.35e9))) == pytest.approx(2e-3)


@given(rows=st.integers(1, 5000), tile=st.sampled_from([64.0, 128.0, 256.0]))
def test_rows_fill_whole_tiles(rows: int, tile: float) -> None:
    small = next((tile * share for share in (1 / 16, 1 / 4, 1 / 2) if rows <= tile * share), tile)
    with jax.enable_x64(True):
        assert float(padded_rows(scalar(rows), scalar(tile))) == small * -(-rows // small)


@given(rows=st.floats(0.5, 3000.0), more=st.floats(0.0, 2.0), tile=st.sampled_from([64.0, 256.0]))
def test_tiles_never_shrink_between_whole_rows_either(rows: float, more: float, tile: float) -> None:
    with jax.enable_x64(True):
        one, two = (float(padded_rows(scalar(each), scalar(tile))) for each in (rows, rows + more))
    assert one <= two * (1 + 1e-12)
    assert one >= rows * (1 - 1e-12) or rows > int(rows)


def test_a_row_beyond_a_tile_costs_a_tile() -> None:
    law = GemmLaw(row_quantum=256.0, row_padding=1.0)
    one, full, over, next_full = (seconds(law, rows, 8192.0, 8192.0) for rows in (513.0, 768.0, 769.0, 1024.0))
    assert one == pytest.approx(full, rel=0.03)
    assert over > 1.2 * full
    assert over == pytest.approx(next_full, rel=0.03)
