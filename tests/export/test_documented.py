"""Nothing is written that an engine does not document, and every documented option names where it was read."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest
import yaml
from export_examples import served
from hypothesis import given, settings
from hypothesis import strategies as st

from optsched.domain.scenario import EngineSpec
from optsched.export.documented import TARGETS, Documented, engine
from optsched.export.export import Exported, export_plan

ROLES = st.one_of(
    st.lists(st.just("mixed"), min_size=1, max_size=4),
    st.integers(1, 3).flatmap(lambda n: st.integers(1, 3).map(lambda m: ["prefill"] * n + ["decode"] * m)),
)


def options_of(words: list[str]) -> list[tuple[str, str | None]]:
    """Read a command line back: names with their values, None for switches."""
    found: list[tuple[str, str | None]] = []
    for word, following in pairwise([*words, "--end"]):
        if word.startswith("--"):
            name, joined, value = word.partition("=")
            found.append((name, value if joined else None if following.startswith("--") else following))
    return found


def commands(exported: Exported, target: str) -> list[tuple[str, list[str]]]:
    """Return which program gets which words, wherever an export starts one."""
    found = []
    for name, text in exported.files.items():
        if name.startswith("replicas/"):
            command = next(line for line in text.replace("\\\n", " ").splitlines() if line.startswith("exec vllm serve"))
            found.append(("vllm", shlex.split(command)[3:]))
        if name in ("modelserver.yaml", "deployment.yaml"):
            for document in yaml.safe_load_all(text):
                found += [(program, words) for program, words in containers(document, target)]
    return found


def containers(document: dict, target: str) -> list[tuple[str, list[str]]]:
    """Return the words of every container of a manifest."""
    if document["kind"] == "Deployment":
        pod = document["spec"]["template"]["spec"]
        side = [("llm-d", each["args"]) for each in pod.get("initContainers", [])]
        return [*side, *(("vllm", each["args"]) for each in pod["containers"])]
    pods = [each["podTemplate"]["spec"]["containers"][0] for each in document["spec"]["components"]]
    return [("dynamo", each["args"]) for each in pods if "args" in each]


@settings(max_examples=25)
@given(
    ROLES,
    st.sampled_from(["qwen3-8b", "llama-3.1-8b", "opt-13b", "mixtral-8x7b"]),
    st.sampled_from([("h200", 2), ("h100-sxm@500W", 4), ("a100-80gb", 2)]),
    st.sampled_from(TARGETS),
    st.sampled_from(["vllm-chunked", "attain", "apt-serve", "paced"]),
    st.integers(16, 40_000),
    st.integers(1, 2000),
    st.booleans(),
    st.sampled_from([8, 16, 32]),
)
def test_every_option_of_every_export_is_documented(
    roles, llm, card, target, batching, budget, sequences, chunked, block
) -> None:
    tier, tp = card
    spec = EngineSpec(block_tokens=block, max_batched_tokens=budget, max_sequences=sequences, chunked_prefill=chunked)
    policy = "collocated" if roles[0] == "mixed" else "conserve"
    exported = export_plan(served(roles, llm=llm, tier=tier, tp=tp, policy=policy, batching=batching, engine=spec), target)
    started = commands(exported, target)
    assert started
    for program, words in started:
        found = options_of(words)
        assert len(found) == len({name for name, _ in found})
        for name, value in found:
            assert engine(program).objection(name, value) == "", (name, value)
    for name, text in exported.files.items():
        if name == "router.values.yaml":
            check_plugins(yaml.safe_load(text))
        if name in ("modelserver.yaml", "deployment.yaml"):
            for document in yaml.safe_load_all(text):
                check_manifest(document)


def check_manifest(document: dict) -> None:
    """Fields, types, labels and environment variables are documented, and names are as Kubernetes takes them."""
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", document["metadata"]["name"])
    if document["kind"] == "Deployment":
        pod = document["spec"]["template"]
        for name, known in engine("llm-d").label.items():
            assert known.objection(pod["metadata"]["labels"][name]) == ""
        for value in pod["metadata"]["labels"].values():
            assert re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", value)
        environment = [each["name"] for container in pod["spec"]["containers"] for each in container["env"]]
        assert set(environment) <= engine("llm-d").environment.keys() | engine("vllm").environment.keys()
        return
    known = engine("dynamo").component
    components = document["spec"]["components"]
    assert len({each["name"].lower() for each in components}) == len(components) <= known.most
    for each in components:
        assert set(each) <= set(known.fields)
        assert each["type"] in known.types
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?", each["name"])
        for container in each["podTemplate"]["spec"]["containers"]:
            assert {variable["name"] for variable in container.get("env", [])} <= engine("dynamo").environment.keys()


def check_plugins(values: dict) -> None:
    """Every plugin and every parameter of the router's configuration is documented, and every reference has its plugin."""
    (text,) = values["router"]["epp"]["pluginsCustomConfig"].values()
    config = yaml.safe_load(text)
    known = engine("llm-d").plugin
    types = [plugin["type"] for plugin in config["plugins"]]
    for plugin in config["plugins"]:
        assert set(plugin.get("parameters", {})) <= set(known[plugin["type"]].parameters)
    for profile in config["schedulingProfiles"]:
        assert {each["pluginRef"] for each in profile["plugins"]} <= set(types)
    for decider in [p["parameters"]["deciders"]["prefill"] for p in config["plugins"] if p["type"] == "disagg-profile-handler"]:
        assert decider in types


@pytest.mark.parametrize("target", TARGETS)
def test_every_documented_option_says_where_it_was_read(target) -> None:
    found = engine(target)
    for each in [*found.option.values(), *found.environment.values(), *found.plugin.values()]:
        assert each.source.startswith("https://")
    assert found.image.count(":") == 1


@pytest.mark.parametrize(
    ("name", "value", "objection"),
    [
        ("--tensor-parallel-size", "0", "out of range"), ("--tensor-parallel-size", "two", "not of type int"),
        ("--tensor-parallel-size", None, "a value is missing"), ("--gpu-memory-utilization", "1.2", "out of range"),
        ("--gpu-memory-utilization", "0.93", ""), ("--enable-chunked-prefill", None, ""), ("--no-enable-chunked-prefill", None, ""),
        ("--enable-chunked-prefill", "yes", "a switch takes no value"), ("--dtype", "int3", "choose among"),
        ("--swap-space", "4", "--swap-space is not documented"),
        ("--kv-transfer-config", '{"kv_role":"kv_some"}', "kv_role: choose among kv_producer, kv_consumer, kv_both"),
        ("--kv-transfer-config", '{"kv_rank":1}', "key 'kv_rank' is not documented"),
    ],
)  # fmt: skip
def test_what_is_not_documented_is_objected_to(name, value, objection) -> None:
    found = engine("vllm").objection(name, value)
    assert objection in found if objection else found == ""
    assert engine("dynamo").objection(name, value) == found  # passes vLLM's options on


def test_a_json_value_is_checked_by_its_keys() -> None:
    known = Documented(type="json", keys={"a": ("b",)}, source="https://x")
    assert known.objection(json.dumps({"a": "b"})) == ""
