from __future__ import annotations

import json

import pytest
from hypothesis import given
from pydantic import ValidationError
from strategies import gpus, links

from optsched import catalog
from optsched.domain.hardware import Gpu, Link, Tier
from optsched.errors import SpecError

# Dense peaks in FLOP/s as the vendors' tables give them (with sparsity: twice as much), memory in bytes/s, board power in W.
PUBLISHED = [
    ("a40", "fp16", 149.7e12, 696e9, 300),
    ("a100-40gb", "bf16", 312e12, 1555e9, 400),
    ("a100-80gb", "bf16", 312e12, 2039e9, 400),
    ("h100-sxm", "fp8", 3958e12 / 2, 3.35e12, 700),
    ("h100-pcie", "bf16", 1513e12 / 2, 2e12, 350),
    ("h200", "bf16", 1979e12 / 2, 4.8e12, 700),
    ("b200", "fp8", 72e15 / 8 / 2, 64e12 / 8, 1000),
    ("l40s", "fp8", 1466e12 / 2, 864e9, 350),
    ("l4", "fp8", 485e12 / 2, 300e9, 72),
    ("a10g", "fp16", 140e12 / 2, 600e9, 300),
    ("rtx-4090", "fp16", 165.2e12, 1008e9, 450),
    ("rtx-pro-6000", "fp8", 2e15 / 2, 1597e9, 600),
    ("mi300x", "fp16", 1307.4e12, 5.3e12, 750),
]


@pytest.mark.parametrize(("name", "dtype", "flops_per_s", "memory_bytes_per_s", "power_w"), PUBLISHED)
def test_datasheets_carry_the_dense_published_peaks(
    name: str, dtype: str, flops_per_s: float, memory_bytes_per_s: float, power_w: float
) -> None:
    sheet = catalog.gpu(name).datasheet
    assert sheet.flops_per_s[dtype] == pytest.approx(flops_per_s, rel=1e-3)
    assert sheet.memory_bytes_per_s == pytest.approx(memory_bytes_per_s, rel=1e-3)
    assert sheet.power_w == power_w


@pytest.mark.parametrize("name", catalog.gpus())
def test_every_packaged_gpu_is_sourced_and_sane(name: str) -> None:
    gpu = catalog.gpu(name)
    assert gpu.name == name
    assert catalog.link(gpu.datasheet.interconnect).name == gpu.datasheet.interconnect
    rates = gpu.datasheet.flops_per_s
    narrower = [rates[dtype] for dtype in ("fp32", "tf32", "bf16", "fp8") if dtype in rates]
    assert narrower == sorted(narrower), "a narrower type is never slower"
    assert "list price, read" in gpu.price.source or "ssumption" in gpu.price.source
    assert gpu.efficiency.source


@pytest.mark.parametrize("name", catalog.links())
def test_every_packaged_link_is_sourced(name: str) -> None:
    link = catalog.link(name)
    assert link.name == name
    assert link.source


def test_a40_leaves_the_kv_tokens_that_vllm_reported_for_qwen3() -> None:
    # 19,278 blocks of 16 tokens: engine log of the ConServe artifact (Qwen3-0.6B, 0.9 utilisation).
    assert _kv_tokens("a40", "qwen3-0.6b") // 16 == 19_278


def test_a100_40gb_leaves_the_kv_tokens_that_papers_report_for_opt_13b() -> None:
    # 15.7k slots: vLLM, arXiv 2309.06180, table 1; later versions reserve more.
    assert 13_000 <= _kv_tokens("a100-40gb", "opt-13b") <= 16_000


def test_the_measured_kv_hand_over_is_the_artifact_s_law() -> None:
    # ConServe artifact: 5.27 ms + 0.985 us per token of 114,688 bytes; about 20 ms at 15k tokens.
    link = catalog.link("kv-transfer-a40")
    for tokens in (2_000, 15_000):
        seconds = link.latency_s + tokens * 114_688 / link.bytes_per_s
        assert seconds == pytest.approx(5.27e-3 + 0.985e-6 * tokens, rel=1e-3)


@given(gpu=gpus())
def test_a_gpu_survives_writing_and_reading(gpu: Gpu) -> None:
    assert Gpu.model_validate(json.loads(gpu.model_dump_json(by_alias=True))) == gpu


@given(link=links())
def test_a_link_survives_writing_and_reading(link: Link) -> None:
    assert Link.model_validate(json.loads(link.model_dump_json(by_alias=True))) == link


@given(gpu=gpus())
def test_board_power_is_a_valid_cap_and_idle_power_is_not(gpu: Gpu) -> None:
    board, idle = gpu.datasheet.power_w, gpu.efficiency.idle_w
    assert Tier(gpu, board).name == f"{gpu.name}@{board:g}W"
    for cap in (idle, idle / 2, board * 1.01, 0.0, -1.0, float("nan")):
        with pytest.raises(SpecError, match="must lie above its idle power"):
            Tier(gpu, cap)


def test_a_datasheet_without_a_source_is_refused() -> None:
    sheet = catalog.gpu("a40").datasheet
    with pytest.raises(ValidationError, match="flops, power without a source"):
        sheet.replace(sources={"memory": "here", "memory_bandwidth": "there"})
    with pytest.raises(ValidationError, match="at least 1 item"):
        sheet.replace(sources={})
    assert sheet.replace(sources={"default": "everywhere"}).sources == {"default": "everywhere"}


def test_idle_power_at_or_above_board_power_is_refused() -> None:
    gpu = catalog.gpu("a40")
    with pytest.raises(ValidationError, match="idle power 300 W must be below the board power 300 W"):
        gpu.replace(efficiency=gpu.efficiency.replace(idle_w=300.0))


def _kv_tokens(gpu_name: str, llm_name: str) -> float:
    gpu, llm = catalog.gpu(gpu_name), catalog.llm(llm_name)
    usable = gpu.datasheet.memory_bytes * gpu.memory_utilisation - gpu.efficiency.reserve_bytes
    return (usable - llm.weights_bytes) / llm.kv_bytes_per_token
