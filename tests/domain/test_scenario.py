"""Scenario files in full: everything the format knows is read, and contradictions are refused."""

from __future__ import annotations

import pytest

from optsched import catalog
from optsched.domain.scenario import Scenario
from optsched.errors import SpecError
from optsched.files import load, validate

FULL = """
schema = "optsched/scenario"
version = 1
transfer_link = "kv-transfer-a40"

[[service]]
name = "chat"
llm = "qwen3-0.6b"
workload = { source = "chat", conversations = 100, arrivals = { process = "gamma", rate_per_s = 2.0, cv = 3.0, seed = 1 } }
slo = { ttft = { percentile = 99, seconds = 1 }, tpot = { percentile = 95, seconds = 0.05 } }

[[service]]
name = "agents"
llm = "qwen3-8b"
workload = { source = "swe-agent", conversations = 50, turns = 3, arrivals = { process = "burst" } }
[service.slo]
ttfet = { percentile = 95, standalone_factor = 5 }
tbt = { percentile = 95, standalone_factor = 5 }
e2e = { percentile = 90, seconds = 60 }

[supply]
"a40" = { count = 4, power_caps_w = [200, 300], gpus_per_node = 4, link = "pcie4-x16" }
"h100-sxm" = { max = 16 }

[[fleet]]
gpu = "a40"
power_cap_w = 300
role = "prefill"
[[fleet]]
gpu = "a40"
power_cap_w = 200
role = "decode"
count = 1
tp = 2
max_batched_tokens = 512

[objective]
minimise = ["slo_misses", "energy"]

[limits]
power_w = 5000
usd_per_hour = 20
survive = "replica"

[engine]
block_tokens = 32
max_batched_tokens = 4096
max_sequences = 128
chunked_prefill = false
watermark = 0.02

[policy]
batching = "apt-serve"
placement = "conserve"
batching_parameters = { ttft_slo_s = 1.0 }
placement_parameters = { extra_tokens = 300 }

[current]
fleet = [{ gpu = "a40", role = "mixed", count = 2 }]
cost_of_change_usd = 3.5

[[period]]
name = "day"
hours = 16
rate_per_s = 3.0
[[period]]
name = "night"
hours = 8
rate_per_s = 0.5
"""


def test_a_scenario_that_uses_every_key_is_read(tmp_path):
    (tmp_path / "full.toml").write_text(FULL)
    scenario = load(Scenario, "scenario", tmp_path / "full.toml")
    assert [service.name for service in scenario.services] == ["chat", "agents"]
    assert scenario.services[1].slo.e2e.seconds == 60
    assert scenario.supply["a40"].limit == 4
    assert scenario.supply["h100-sxm"].limit == 16
    assert scenario.fleet[1].tp == 2
    assert scenario.objective.minimise == ("slo_misses", "energy")
    assert scenario.limits.survive == "replica"
    assert scenario.engine.block_tokens == 32
    assert scenario.current.cost_of_change_usd == 3.5
    assert sum(period.hours for period in scenario.periods) == 24


@pytest.mark.parametrize("name", catalog.scenarios())
def test_every_packaged_scenario_reads_and_its_names_exist(name):
    scenario = catalog.scenario(name)
    catalog.llm(scenario.llm)
    for gpu in scenario.supply:
        catalog.gpu(gpu)
    if scenario.transfer_link is not None:
        catalog.link(scenario.transfer_link)


BASE = {
    "llm": "qwen3-0.6b",
    "workload": {"source": "chat", "conversations": 5, "arrivals": {"process": "burst"}},
    "supply": {"a40": {"count": 2}},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"llm": None}, "needs both llm and"),
        ({"service": [{"name": "a", "llm": "x", "workload": BASE["workload"]}]}, "give either llm and"),
        ({"supply": {}}, "at least 1"),
        ({"supply": {"a40": {}}}, "give either count"),
        ({"supply": {"a40": {"count": 1, "max": 2}}}, "give either count"),
        ({"supply": {"a40": {"count": 1, "power_caps_w": [-5]}}}, "must be positive watts"),
        ({"fleet": [{"gpu": "a40", "role": "mixed", "count": 3}]}, r"needs 3 x a40, but \[supply\] has 2"),
        ({"fleet": [{"gpu": "l4", "role": "mixed"}]}, "uses 'l4'"),
        ({"fleet": [{"gpu": "a40", "role": "decode"}]}, "only decode replicas"),
        ({"objective": {"minimise": []}}, "at least one objective"),
        ({"slo": {"ttft": {"percentile": 95}}}, "give either seconds or standalone_factor"),
        ({"limits": {"survive": "luck"}}, "limits.survive"),
        ({"workload": {**BASE["workload"], "arrivals": {"process": "poisson"}}}, "needs rate_per_s"),
        ({"engine": {"watermark": 1.0}}, "less than 1"),
    ],
)
def test_contradictions_are_refused(change, says):
    validate(Scenario, BASE)
    with pytest.raises(SpecError, match=says):
        validate(Scenario, {**BASE, **change})


def test_service_names_must_differ():
    service = {"name": "a", "llm": "qwen3-0.6b", "workload": BASE["workload"]}
    with pytest.raises(SpecError, match="service names must differ: a, a"):
        validate(Scenario, {"service": [service, service], "supply": BASE["supply"]})
