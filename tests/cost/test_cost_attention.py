"""The laws of attention: known points, bounds, monotony, gradients."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost.decode_attention import (
    UNLIMITED_TOKENS,
    DecodeAttentionParameters,
    decode_attention_bytes,
    decode_attention_flops,
    decode_attention_s,
)
from optsched.cost.precision import scalar
from optsched.cost.prefill_attention import (
    PrefillAttentionParameters,
    prefill_attention_bytes,
    prefill_attention_flops,
    prefill_attention_s,
)
from optsched.cost.roofline import Card, power_norm
from optsched.cost.shape import LlmShape
from optsched.cost.tier import TierParameters
from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw

PEAK, BANDWIDTH = 1e15, 4e12
PREFILL, DECODE = PrefillAttentionParameters.of(PrefillAttentionLaw()), DecodeAttentionParameters.of(DecodeAttentionLaw())
BARE_PREFILL = PrefillAttentionLaw(
    compute=0.5,
    half_width=1e-9,
    wide_width=1e9,
    tile_rows=1e-3,
    row_keys=1e-9,
    path_s=1e-15,
    copies=1e-9,
    copy_s=0,
    launch_s=0,
    memory=1.0,
)
BARE_DECODE = DecodeAttentionLaw(
    memory=0.8, narrow_width=1e-9, compute=1.0, tile_rows=1e-3, unit_s=1e-15, path_s=1e-15, serial_s=0, split_s=0,
    query_passes=1e-9, sequence_s=0, launch_s=0, overlap=8.0,
)  # fmt: skip
SIZES = st.fixed_dictionaries(
    {
        "sequences": st.integers(1, 512),
        "new": st.integers(1, 16384),
        "context": st.integers(0, 131072),
        "kv_heads": st.integers(1, 64),
        "group": st.integers(1, 16),
        "width": st.sampled_from([64, 128, 256]),
        "cache_bytes": st.sampled_from([1.0, 2.0]),
    }
)


def card(flops: float = PEAK, bandwidth: float = BANDWIDTH, clock: float = 1.0) -> Card:
    """Return a card."""
    return Card(scalar(flops), scalar(bandwidth), scalar(clock))


def prefill_shape(size: dict[str, float]) -> tuple[float, ...]:
    """Return the arguments of `prefill_attention_s` after law and card: alike sequences without a window."""
    tokens, context = size["sequences"] * size["new"], size["sequences"] * size["context"]
    pairs = size["sequences"] * size["new"] * (size["context"] + size["new"] / 2)
    width, kv_heads = size["width"], size["kv_heads"]
    heads = kv_heads * size["group"]
    return (
        tokens, context, pairs, size["sequences"], heads, kv_heads, width, width, 2 * kv_heads * width, size["cache_bytes"], 2.0,
    )  # fmt: skip


def decode_shape(size: dict[str, float]) -> tuple[float, ...]:
    """Return the arguments of `decode_attention_s` after law and card: alike sequences without a window."""
    width, kv_heads = size["width"], size["kv_heads"]
    cached = size["sequences"] * (size["context"] + 1)
    return (
        size["sequences"], cached, kv_heads * size["group"], kv_heads, width, width, 2 * kv_heads * width, size["cache_bytes"], 2.0,
    )  # fmt: skip


_prefill = jax.jit(prefill_attention_s)
_decode = jax.jit(decode_attention_s)


def prefill_s(law: PrefillAttentionParameters, on: Card, shape: tuple[float, ...]) -> float:
    """Return the time of a prefill."""
    return float(_prefill(law, on, *map(scalar, shape)))


def decode_s(law: DecodeAttentionParameters, on: Card, shape: tuple[float, ...], warm: float = 0.0) -> float:
    """Return the time of a decode step."""
    return float(_decode(law, on, *map(scalar, shape), scalar(1e15), scalar(warm)))


def test_long_prompt_runs_at_the_share_of_the_peak() -> None:
    shape = prefill_shape({"sequences": 1, "new": 65536, "context": 0, "kv_heads": 8, "group": 4, "width": 128, "cache_bytes": 2})
    flops = 4 * 32 * 128 * 65536**2 / 2
    assert prefill_s(PrefillAttentionParameters.of(BARE_PREFILL), card(), shape) == pytest.approx(flops / (0.5 * PEAK), rel=0.02)


def test_decode_of_long_contexts_runs_at_the_share_of_the_bandwidth() -> None:
    shape = decode_shape({"sequences": 32, "context": 65535, "kv_heads": 8, "group": 1, "width": 128, "cache_bytes": 2})
    read = 32 * 65536 * 8 * 2 * 128 * 2
    assert decode_s(DecodeAttentionParameters.of(BARE_DECODE), card(), shape) == pytest.approx(read / (0.8 * BANDWIDTH), rel=0.02)


def test_short_append_on_a_long_context_pays_for_walking_and_reading_it() -> None:
    size = {"sequences": 1, "new": 16, "context": 16384, "kv_heads": 8, "group": 4, "width": 128, "cache_bytes": 2}
    appended = prefill_s(PREFILL, card(), prefill_shape(size))
    alone = prefill_s(PREFILL, card(), prefill_shape({**size, "context": 0}))
    assert appended - alone > 16384 * float(PREFILL.path_s)
    assert appended > 16384 * 2 * 8 * 128 * 2 / BANDWIDTH
    # Until the multiprocessors are full, further rows walk the same context at the same time.
    assert prefill_s(PREFILL, card(), prefill_shape({**size, "new": 64})) < 1.1 * appended


def test_small_caches_are_quicker_where_the_measurement_repeats_itself() -> None:
    size = {"sequences": 4, "context": 1024, "kv_heads": 8, "group": 4, "width": 128, "cache_bytes": 2}
    assert decode_s(DECODE, card(bandwidth=1e11), decode_shape(size), 1.0) < decode_s(
        DECODE, card(bandwidth=1e11), decode_shape(size)
    )
    large = {**size, "sequences": 256}
    warm, cold = decode_s(DECODE, card(), decode_shape(large), 1.0), decode_s(DECODE, card(), decode_shape(large))
    assert warm == pytest.approx(cold, rel=1e-3)


@settings(max_examples=60)
@given(SIZES)
def test_attention_is_never_quicker_than_the_datasheet_allows(size: dict[str, float]) -> None:
    shape = prefill_shape(size)
    time = prefill_s(PREFILL, card(), shape)
    assert time >= float(prefill_attention_flops(shape[2], shape[4], shape[6], shape[7])) / PEAK
    moved = prefill_attention_bytes(*(shape[i] for i in (0, 1, 4, 6, 7, 8, 9, 10)))
    assert time >= float(moved) / BANDWIDTH * (1 - 1e-12)
    shape = decode_shape(size)
    time = decode_s(DECODE, card(), shape)
    assert time >= float(decode_attention_flops(shape[1], shape[2], shape[4], shape[5])) / PEAK
    assert time >= float(decode_attention_bytes(*(shape[i] for i in (0, 1, 2, 4, 5, 6, 7, 8)))) / BANDWIDTH * (1 - 1e-12)


@settings(max_examples=60)
@given(SIZES, st.sampled_from(["flops", "bandwidth", "clock"]), st.floats(1.01, 8))
def test_more_of_any_resource_never_slows_attention(size: dict[str, float], resource: str, factor: float) -> None:
    base = {"flops": PEAK, "bandwidth": BANDWIDTH, "clock": 0.5}
    better = {**base, resource: base[resource] * (min(factor, 2) if resource == "clock" else factor)}
    assert prefill_s(PREFILL, card(**better), prefill_shape(size)) <= prefill_s(PREFILL, card(**base), prefill_shape(size)) * (
        1 + 1e-12
    )
    assert decode_s(DECODE, card(**better), decode_shape(size)) <= decode_s(DECODE, card(**base), decode_shape(size)) * (
        1 + 1e-12
    )


@settings(max_examples=60)
@given(SIZES, st.sampled_from(["new", "context", "kv_heads", "width"]))
def test_more_work_never_takes_less_time(size: dict[str, float], dimension: str) -> None:
    more = {**size, dimension: 2 * size[dimension] + 1}
    assert prefill_s(PREFILL, card(), prefill_shape(more)) >= prefill_s(PREFILL, card(), prefill_shape(size)) * (1 - 1e-9)
    assert decode_s(DECODE, card(), decode_shape(more)) >= decode_s(DECODE, card(), decode_shape(size)) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("law", "time", "shape"),
    [
        (PREFILL, prefill_attention_s, prefill_shape),
        (DECODE, decode_attention_s, decode_shape),
    ],
)
def test_gradients_are_finite_differences(
    law: PrefillAttentionParameters | DecodeAttentionParameters, time: Callable, shape: Callable
) -> None:
    size = {"sequences": 7, "new": 300, "context": 5000, "kv_heads": 4, "group": 3, "width": 128, "cache_bytes": 2}
    arguments = jnp.array(shape(size))
    tree = (law, card(clock=0.8))
    leaves, form = jax.tree.flatten(tree)

    def seconds(scales: jax.Array) -> jax.Array:
        scaled = jax.tree.unflatten(form, [leaf * scale for leaf, scale in zip(leaves, scales, strict=True)])
        return time(*scaled, *arguments)

    ones = np.ones(len(leaves))
    gradient = np.asarray(jax.jit(jax.grad(seconds))(ones))
    step = 1e-5
    moved = ones + step * np.concatenate([np.eye(len(leaves)), -np.eye(len(leaves))])
    values = np.asarray(jax.jit(jax.vmap(seconds))(moved))
    differences = (values[: len(leaves)] - values[len(leaves) :]) / (2 * step)
    assert np.allclose(gradient, differences, rtol=1e-4, atol=1e-6 * float(seconds(ones)))


def test_steps_without_attention_have_finite_gradients() -> None:
    shape = (1.0, 0.0, 0.0, 1.0, 32.0, 8.0, 128.0, 128.0, 2048.0, 2.0, 2.0)
    for law, time, arguments in ((PREFILL, prefill_attention_s, shape), (DECODE, decode_attention_s, (1.0, 0.0, *shape[4:]))):
        gradient = jax.jit(jax.grad(lambda each, time=time, arguments=arguments: time(each, card(), *map(scalar, arguments))))(
            law
        )
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def test_norm_is_a_sum_at_order_one_and_a_maximum_at_a_large_one() -> None:
    assert float(power_norm(3.0, 4.0, 1.0)) == pytest.approx(7.0)
    assert float(power_norm(3.0, 4.0, 2.0)) == pytest.approx(5.0)
    assert float(power_norm(3.0, 4.0, 50.0)) == pytest.approx(4.0, rel=1e-6)
    assert float(power_norm(0.0, 0.0, 2.0)) == pytest.approx(0.0, abs=1e-14)


def test_latent_attention_has_laws_of_its_own() -> None:
    tier = catalog.tier("h200")
    achieved = tier.gpu.efficiency.replace(
        latent_prefill_attention={"bf16": PrefillAttentionLaw(compute=0.11)},
        latent_decode_attention={"bf16": DecodeAttentionLaw(memory=0.22)},
    )
    assert achieved.prefill_attention_law("bf16", latent=True).compute == 0.11
    assert achieved.decode_attention_law("bf16", latent=True).memory == 0.22
    assert achieved.prefill_attention_law("bf16").compute != 0.11
    latent = TierParameters.of(type(tier)(tier.gpu.replace(efficiency=achieved), tier.power_cap_w), catalog.llm("deepseek-v3"))
    assert (float(latent.prefill_attention.compute), float(latent.decode_attention.memory)) == (0.11, 0.22)


def test_sliding_window_reaches_the_decode_kernel() -> None:
    llm = catalog.llm("llama-3.1-8b")
    windows = [float(LlmShape.of(each).window) for each in (llm, llm.replace(sliding_window=4096))]
    assert windows == [UNLIMITED_TOKENS, 4096.0]
    shape = decode_shape({"sequences": 8, "context": 4095, "kv_heads": 8, "group": 4, "width": 128, "cache_bytes": 2})
    unlimited, limited = (float(_decode(DECODE, card(), *map(scalar, shape), scalar(each), scalar(0.0))) for each in windows)
    # The tiles at both ends of a full window are read whole, and its kernels share less among the heads of a group.
    assert limited > unlimited
