from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from strategies import llms

from optsched import catalog
from optsched.domain.dtypes import DTYPE_BYTES
from optsched.domain.llm import Llm

HUB = "Hugging Face Hub, safetensors parameter count on the model page of "
# name, parameters, KV bytes per token, hidden bytes per token, where the numbers are published
PUBLISHED = [
    (
        "opt-13b",
        12_853_473_280,
        819_200,
        409_600,
        "OPT, arXiv 2205.01068, table 1; 800 KB of KV per token: vLLM, arXiv 2309.06180, section 3",
    ),
    ("opt-30b", 29_974_540_288, 1_376_256, 688_128, "OPT, arXiv 2205.01068, table 1"),
    ("opt-66b", 65_719_701_504, 2_359_296, 1_179_648, "OPT, arXiv 2205.01068, table 1"),
    ("qwen3-0.6b", 596_049_920, 114_688, 57_344, "112 KiB of KV: Qwen3-0.6B model card (28 layers, 8 KV heads of 128)"),
    ("qwen3-8b", 8_190_735_360, 147_456, 294_912, HUB + "Qwen/Qwen3-8B"),
    ("qwen3-32b", 32_762_123_264, 262_144, 655_360, HUB + "Qwen/Qwen3-32B"),
    ("llama-2-7b", 6_738_415_616, 524_288, 262_144, HUB + "meta-llama/Llama-2-7b-hf"),
    ("llama-2-70b", 68_976_648_192, 327_680, 1_310_720, HUB + "meta-llama/Llama-2-70b-hf"),
    ("llama-3.1-8b", 8_030_261_248, 131_072, 262_144, HUB + "meta-llama/Llama-3.1-8B"),
    ("llama-3.1-70b", 70_553_706_496, 327_680, 1_310_720, HUB + "meta-llama/Llama-3.1-70B"),
    ("qwen3-30b-a3b", 30_532_122_624, 98_304, 196_608, HUB + "Qwen/Qwen3-30B-A3B"),
    ("mixtral-8x7b", 46_702_792_704, 131_072, 262_144, HUB + "mistralai/Mixtral-8x7B-v0.1"),
    (
        "deepseek-v3",
        671_026_419_200,
        70_272,
        874_496,
        "671B and 37B active: arXiv 2412.19437; 70.272 KB of KV: arXiv 2505.09343, table 1",
    ),
    ("smollm2-135m", 134_515_008, 23_040, 34_560, HUB + "HuggingFaceTB/SmolLM2-135M"),
]
ACTIVE = [
    ("qwen3-30b-a3b", 3.3e9, "Qwen3-30B-A3B model card"),
    ("mixtral-8x7b", 12.9e9, "Mixtral of Experts, arXiv 2401.04088, abstract: 13B"),
    ("deepseek-v3", 37e9, "DeepSeek-V3, arXiv 2412.19437, abstract"),
]
RATIOS = [
    ("opt-13b", 0.5),
    ("qwen3-0.6b", 0.5),
    ("qwen3-8b", 2.0),
    ("qwen3-32b", 2.5),
    ("smollm2-135m", 1.5),
    ("llama-2-7b", 0.5),
]


@pytest.mark.parametrize(("name", "params", "kv_bytes", "hidden_bytes", "source"), PUBLISHED)
def test_published_sizes_follow_from_the_shape(name: str, params: int, kv_bytes: int, hidden_bytes: int, source: str) -> None:
    llm = catalog.llm(name)
    assert (llm.num_params, llm.kv_bytes_per_token, llm.hidden_bytes_per_token) == (params, kv_bytes, hidden_bytes), source


@pytest.mark.parametrize(("name", "active", "source"), ACTIVE)
def test_active_parameters_match_the_published_rounded_figure(name: str, active: float, source: str) -> None:
    assert catalog.llm(name).num_active_params == pytest.approx(active, rel=0.02), source


@pytest.mark.parametrize(("name", "ratio"), RATIOS)
def test_hidden_ratio_comes_from_the_shape_and_not_from_grouping(name: str, ratio: float) -> None:
    assert catalog.llm(name).hidden_ratio == ratio


@pytest.mark.parametrize("name", catalog.llms())
def test_transformers_counts_the_same_parameters_in_every_packaged_llm(name: str) -> None:
    llm = catalog.llm(name)
    assert llm.num_params == _transformers_params(llm)


@settings(max_examples=25)
@given(llm=llms())
def test_transformers_counts_the_same_parameters_in_any_shape(llm: Llm) -> None:
    if llm.moe is not None and llm.moe.num_shared == 0 and llm.family == "deepseek_v3":
        llm = llm.replace(moe=llm.moe.replace(num_shared=1))  # transformers builds an expert of width 0 and warns
    assert llm.num_params == _transformers_params(llm)


@given(llm=llms())
def test_sizes_are_consistent(llm: Llm) -> None:
    assert 0 < llm.num_active_params <= llm.num_params
    assert 0 < llm.wide_params <= llm.num_params
    narrow = DTYPE_BYTES[llm.dtype]
    assert llm.weights_bytes == pytest.approx(llm.num_params * narrow + llm.wide_params * max(0.0, 2.0 - narrow))
    assert llm.hidden_ratio == pytest.approx(llm.hidden_bytes_per_token / llm.kv_bytes_per_token)
    assert math.isclose(llm.replace(num_layers=2 * llm.num_layers).kv_bytes_per_token, 2 * llm.kv_bytes_per_token)


@given(llm=llms())
def test_an_llm_survives_writing_and_reading(llm: Llm) -> None:
    assert Llm.model_validate(json.loads(llm.model_dump_json(by_alias=True))) == llm


@pytest.mark.parametrize(
    "name", ["tiny-opt", "tiny-llama", "tiny-qwen3", "demo-opt", "demo-qwen3", "smollm2-135m", "qwen3-0.6b", "opt-13b"]
)
def test_the_workers_can_run_plain_opt_llama_and_qwen3(name: str) -> None:
    assert catalog.llm(name).runtime_refusal is None


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("mixtral-8x7b", {}, "family mixtral"),
        ("deepseek-v3", {}, "family deepseek_v3"),
        ("llama-3.1-8b", {}, "llama3 scaling of rotary frequencies"),
        ("llama-2-7b", {"sliding_window": 4096}, "sliding-window attention"),
        ("llama-2-7b", {"dtype": "int4"}, "int4 weights"),
    ],
)
def test_the_workers_say_why_they_refuse_an_llm(name: str, changes: dict[str, object], why: str) -> None:
    refusal = catalog.llm(name).replace(**changes).runtime_refusal
    assert refusal is not None
    assert refusal.startswith(why)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 16 must be a multiple of num_kv_heads 3"),
        ({"family": "mixtral"}, r"family mixtral and the \[moe\] table contradict each other"),
        ({"family": "deepseek_v3", "moe": {"num_experts": 2, "experts_per_token": 1, "expert_size": 8}}, r"the \[mla\] table"),
        ({"moe": {"num_experts": 2, "experts_per_token": 1, "expert_size": 8}}, r"family qwen3 and the \[moe\] table"),
        ({"num_layers": 0}, "greater than 0"),
        ({"name": "a b"}, "pattern"),
        ({"rope_theta": float("nan")}, "finite number"),
    ],
)
def test_contradictory_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        catalog.llm("qwen3-0.6b").replace(**changes)


def test_more_experts_per_token_than_experts_are_refused() -> None:
    moe = catalog.llm("mixtral-8x7b").moe
    assert moe is not None
    with pytest.raises(ValidationError, match="experts_per_token 9 exceeds num_experts 8"):
        moe.replace(experts_per_token=9)


def test_more_dense_layers_than_layers_are_refused() -> None:
    llm = catalog.llm("deepseek-v3")
    assert llm.moe is not None
    with pytest.raises(ValidationError, match="num_dense_layers 62 exceeds num_layers 61"):
        llm.replace(moe=llm.moe.replace(num_dense_layers=62))


def _transformers_params(llm: Llm) -> int:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers_configs import transformers_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(llm))
    # transformers keeps the router's bias as a buffer; DeepSeek's own code and checkpoint have it as a parameter.
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return int(model.num_parameters()) + biases


def test_layers_with_a_window_need_one_and_are_no_more_than_all() -> None:
    llm = catalog.llm("qwen3-8b")
    with pytest.raises(ValidationError, match="num_sliding_layers 9 needs a sliding_window"):
        llm.replace(num_sliding_layers=9)
    with pytest.raises(ValidationError, match="num_sliding_layers 37 exceeds num_layers 36"):
        llm.replace(sliding_window=512, num_sliding_layers=37)
    assert llm.replace(sliding_window=512, num_sliding_layers=36).common_window == 512
    assert llm.replace(sliding_window=512, num_sliding_layers=35).common_window is None
