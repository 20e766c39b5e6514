from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from strategies import workloads

from optsched import catalog
from optsched.domain.workload import Recipe, Workload
from optsched.errors import SpecError
from optsched.files import load
from optsched.traces.importers import import_trace
from optsched.traces.loading import describe_workload, load_workload
from optsched.traces.statistics import Spread, distil, recipe_toml, statistics
from optsched.traces.synthesis import synthesise


@pytest.mark.parametrize("name", ["swe-agent", "swe-agent-quickstart", "chat", "code", "azure-conversation", "azure-code"])
def test_every_packaged_recipe_says_where_its_numbers_come_from(name: str) -> None:
    recipe = catalog.recipe(name)
    assert recipe.name == name
    assert len(recipe.origin) > 40
    assert synthesise(recipe, 20, 0).num_conversations == 20


@pytest.mark.parametrize("name", ["swe-agent-a40", "swe-agent-a40-conserve", "quickstart", "chat-l4"])
def test_every_packaged_scenario_names_things_that_exist(name: str) -> None:
    scenario = catalog.scenario(name)
    assert scenario.llm is not None
    assert scenario.workload is not None
    llm = catalog.llm(scenario.llm)
    for gpu, supply in scenario.supply.items():
        found = catalog.gpu(gpu)
        assert found.datasheet.memory_bytes * found.memory_utilisation > llm.weights_bytes
        for cap in supply.power_caps_w:
            assert catalog.tier(f"{gpu}@{cap}").power_cap_w == cap
    if scenario.transfer_link is not None:
        catalog.link(scenario.transfer_link)
    workload = load_workload(describe_workload(scenario.workload, catalog.scenario_path(name).parent))
    assert workload.num_conversations == scenario.workload.conversations


def test_the_conserve_scenario_has_the_fleet_of_the_paper() -> None:
    scenario = catalog.scenario("swe-agent-a40-conserve")
    assert [(entry.role, entry.count, entry.power_cap_w) for entry in scenario.fleet] == [("prefill", 1, 300), ("decode", 3, 200)]
    assert scenario.fleet[0].max_batched_tokens == 8192
    assert (scenario.engine.max_batched_tokens, scenario.engine.max_sequences) == (2944, 1024)


@pytest.mark.parametrize(
    ("name", "file", "conversations", "turns"),
    [
        ("swe-agent", "conserve/trace_profile_summary.csv", 255, 5),
        ("chat", "traces/sharegpt-llama-3.1-8b-300-sps10.jsonl", None, None),
        ("azure-conversation", "traces/AzureLLMInferenceTrace_conv.csv", None, None),
        ("azure-code", "traces/AzureLLMInferenceTrace_code.csv", None, None),
    ],
)
def test_a_recipe_is_what_its_trace_gives_and_draws_lengths_with_its_means(
    name: str, file: str, conversations: int | None, turns: int | None, third_party_data: Path
) -> None:
    path = third_party_data / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    trace = import_trace(path).head(conversations, turns)
    recipe = catalog.recipe(name)
    assert distil(trace, name, recipe.title, recipe.origin) == recipe
    drawn = synthesise(recipe, 40_000, 1)
    for index in range(len(recipe.turns)):
        mine, theirs = drawn.turn_in_conversation == index, trace.turn_in_conversation == index
        assert drawn.new_tokens[mine].mean() == pytest.approx(trace.new_tokens[theirs].mean(), rel=0.06)
        assert drawn.output_tokens[mine].mean() == pytest.approx(trace.output_tokens[theirs].mean(), rel=0.1)


def test_the_code_recipe_has_the_published_means() -> None:
    drawn = synthesise(catalog.recipe("code"), 100_000, 1)
    assert drawn.new_tokens.mean() == pytest.approx(171.3, rel=0.01)
    assert drawn.output_tokens.mean() == pytest.approx(98.2, rel=0.02)


@given(workload=workloads())
def test_a_distilled_recipe_survives_its_file(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = distil(workload, "r", 'a "quoted" \\ title\n\x7f', "tést", (0, 1 / 3, 1))
    path = tmp_path_factory.mktemp("r") / "r.toml"
    path.write_text(recipe_toml(recipe), encoding="utf-8")
    assert load(Recipe, "workload", path) == recipe
    drawn = synthesise(recipe, 10, 0)
    assert drawn.new_tokens.max() <= max(workload.new_tokens.max(), 1)


def test_quantiles_of_a_recipe_must_run_from_0_to_1() -> None:
    workload = synthesise(catalog.recipe("chat"), 3, 0)
    for wrong in ((0.0, 0.5), (0.0, 0.5, 0.5, 1.0), (1.0,)):
        with pytest.raises(SpecError, match=r"quantiles: must increase from 0 to 1, for example 0,0.5,1"):
            distil(workload, "r", "r", "r", wrong)


@given(workload=workloads(with_prefix_blocks=True))
def test_statistics_count_every_token_and_block_once(workload: Workload) -> None:
    numbers = statistics(workload)
    assert numbers.conversations == workload.num_conversations
    assert numbers.prompt_tokens + numbers.output_tokens == int(workload.peak_tokens.sum())
    assert numbers.context_tokens >= numbers.prompt_tokens + numbers.output_tokens
    assert numbers.prefix_blocks is not None
    assert workload.prefix_blocks is not None
    assert numbers.repeated_prefix_blocks == numbers.prefix_blocks - len(set(workload.prefix_blocks.tolist()))
    if numbers.rate_per_s is not None and numbers.span_s is not None:
        assert numbers.rate_per_s * numbers.span_s == pytest.approx(workload.num_conversations - 1)


def test_the_spread_of_nothing_is_nothing() -> None:
    assert Spread.of(np.empty(0)) is None
    spread = Spread.of(np.arange(101.0))
    assert spread == Spread(mean=50.0, p5=5.0, p50=50.0, p95=95.0, p99=99.0, max=100.0)
