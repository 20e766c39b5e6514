"""A gpu and an llm are added by one TOML file each, and everything works with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optsched import catalog
from optsched.cli import invoke

CARD = """
schema = "optsched/gpu"
version = 1
name = "new-card"
title = "A card that was announced yesterday"

[datasheet]
memory = "96 GB"
memory_bandwidth = "4 TB/s"
power = "600 W"
interconnect = "nvlink4"

[datasheet.flops]
bf16 = "1200 TFLOP/s"
fp32 = "80 TFLOP/s"

[datasheet.sources]
default = "a test"

[price]
usd_per_hour = 3.0
source = "a test"

[efficiency]
source = "the shares of its predecessor"
{sibling}
idle_w = "90 W"
"""
LLM = """
schema = "optsched/llm"
version = 1
name = "new-llm"
title = "An llm that was published today"
family = "llama"
num_layers = 24
hidden_size = 2048
num_heads = 16
num_kv_heads = 4
head_dim = 128
ffn_size = 8192
vocab_size = 100000
max_positions = 32768
rope_theta = 1e6
source = "a test"
"""
SCENARIO = """
schema = "optsched/scenario"
version = 1
llm = "new-llm"
[workload]
source = "swe-agent-quickstart"
conversations = 4
arrivals = { process = "poisson", rate_per_s = 2.0, seed = 42 }
[supply]
"new-card" = { count = 3 }
[slo]
ttfet = { percentile = 95, standalone_factor = 5 }
[objective]
minimise = "ttfet"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("gpus", "llms"):
        (tmp_path / kind).mkdir()
    (tmp_path / "llms" / "new-llm.toml").write_text(LLM)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path))
    return tmp_path


def estimate(capsys: pytest.CaptureFixture[str]) -> dict:
    assert invoke(["estimate", "--llm", "new-llm", "--tier", "new-card", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_new_gpu_leans_on_its_sibling_and_says_so_in_every_estimate(folder: Path, capsys) -> None:
    path = folder / "gpus" / "new-card.toml"
    path.write_text(CARD.format(sibling='sibling = "h100-sxm"'))
    assert catalog.gpu("h100-sxm").efficiency.gemm["bf16"].fit is not None
    leaning = estimate(capsys)
    assert (leaning["origin"], leaning["sibling"]) == ("assumed", "h100-sxm")
    assert invoke(["estimate", "--llm", "new-llm", "--tier", "new-card"]) == 0
    text = capsys.readouterr().out
    assert "Coefficients are assumed" in text
    assert "What new-card has no laws of its own for is estimated by those of its sibling h100-sxm." in text
    path.write_text(CARD.format(sibling=""))
    alone = estimate(capsys)
    assert (alone["origin"], alone["sibling"]) == ("assumed", None)
    assert alone["prefill_s"] != leaning["prefill_s"]


def test_a_plan_is_made_with_a_new_gpu_and_a_new_llm(folder: Path, capsys) -> None:
    (folder / "gpus" / "new-card.toml").write_text(CARD.format(sibling='sibling = "h100-sxm"'))
    assert invoke(["plan", str(folder / "scenario.toml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {each["gpu"] for each in printed["replicas"]} == {"new-card"}
    assert {each["origin"] for each in printed["replicas"]} == {"assumed"}
    assert printed["llms"][0]["shape"]["name"] == "new-llm"
    assert printed["certificate"]["bound"] <= printed["certificate"]["value"]


def test_every_packaged_sibling_exists_and_what_leans_on_it_is_not_called_fitted() -> None:
    leaning = {name: catalog.gpu(name) for name in catalog.gpus() if catalog.gpu(name).efficiency.sibling}
    assert {"h100-pcie", "a10g", "rtx-4090"} <= set(leaning)
    for name, gpu in leaning.items():
        own = catalog.gpu_path(name).read_text(encoding="utf-8")
        inherited = [dtype for dtype in gpu.efficiency.experts if f"[efficiency.experts.{dtype}]" not in own]
        assert inherited
        assert all(gpu.efficiency.experts[dtype].fit is None for dtype in inherited)
