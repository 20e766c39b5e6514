"""Exports say what the plan says: roles, sizes, memory, ports, and what could not be said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from export_examples import served

from optsched import catalog
from optsched.domain.plan import PlanLlm
from optsched.domain.scenario import EngineSpec
from optsched.errors import PlanError, SpecError
from optsched.export.export import export_plan
from optsched.export.folder import write_folder
from optsched.export.serving import servings, weights_of


def options(plan, index=0, **more):
    return dict(servings(plan, **more)[index].options)


@pytest.mark.parametrize("tier", ["h100-sxm", "a100-80gb", "h200", "l40s"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_full_cache_gives_back_the_card_s_own_memory_fraction(tier, tp) -> None:
    found = options(served(["mixed"], tier=tier, tp=tp, policy="collocated"))
    assert float(found["--gpu-memory-utilization"]) == pytest.approx(catalog.gpu(tier).memory_utilisation, abs=1.01e-3)
    assert found["--tensor-parallel-size"] == str(tp)


def test_half_the_cache_takes_that_much_less_memory() -> None:
    plan = served(["mixed"], policy="collocated")
    replica, shape, card = plan.replicas[0], plan.llms[0].shape, catalog.gpu("h100-sxm")
    half = plan.replace(replicas=(replica.replace(kv_blocks=replica.kv_blocks // 2),))
    less = float(options(plan)["--gpu-memory-utilization"]) - float(options(half)["--gpu-memory-utilization"])
    freed = (replica.kv_blocks - replica.kv_blocks // 2) * 16 * shape.kv_bytes_per_token
    assert less == pytest.approx(freed / card.datasheet.memory_bytes, abs=1.01e-3)


def test_roles_become_connector_roles_and_mixed_fleets_need_none() -> None:
    found = [json.loads(options(served(["prefill", "decode"]), index)["--kv-transfer-config"]) for index in (0, 1)]
    assert [each["kv_role"] for each in found] == ["kv_producer", "kv_consumer"]
    assert {each["kv_connector"] for each in found} == {"NixlConnector"}
    both = served(["prefill", "decode", "mixed"])
    assert json.loads(options(both, 2)["--kv-transfer-config"])["kv_role"] == "kv_both"
    assert "--kv-transfer-config" not in options(served(["mixed", "mixed"], policy="collocated"))


def test_engine_limits_are_the_plan_s_and_a_replica_s_own_budget_wins() -> None:
    plan = served(["prefill", "decode"], engine=EngineSpec(max_batched_tokens=4096, max_sequences=100, block_tokens=32))
    plan = plan.replace(replicas=(plan.replicas[0].replace(max_batched_tokens=16384), plan.replicas[1]))
    assert options(plan, 0)["--max-num-batched-tokens"] == "16384"
    assert options(plan, 1)["--max-num-batched-tokens"] == "4096"
    assert options(plan, 1)["--max-num-seqs"] == "100"
    assert options(plan, 1)["--block-size"] == "32"
    assert options(plan, 1)["--dtype"] == "bfloat16"


def test_whole_prompts_end_contexts_at_the_token_budget() -> None:
    plan = served(["mixed"], policy="collocated", engine=EngineSpec(max_batched_tokens=4096, chunked_prefill=False))
    found = options(plan)
    assert "--no-enable-chunked-prefill" in found
    assert found["--max-model-len"] == "4096"
    assert any("contexts end at 4,096 tokens" in note for note in export_plan(plan, "vllm").notes)


def test_weights_are_those_of_the_option_the_plan_or_hugging_face(tmp_path) -> None:
    plan = served(["mixed"], policy="collocated")
    assert servings(plan)[0].model == "Qwen/Qwen3-8B"
    assert servings(plan, "me/mine")[0].model == "me/mine"
    assert weights_of(plan.llms[0].replace(weights=str(tmp_path))) == str(tmp_path)
    own = plan.replace(llms=(PlanLlm(name="qwen3-8b", shape=catalog.llm("demo-qwen3")),))
    with pytest.raises(SpecError, match="--model: qwen3-8b has no published weights that an engine could serve; name some"):
        servings(own)


def test_what_no_engine_can_hold_is_refused() -> None:
    plan = served(["mixed"], policy="collocated")
    local = plan.replace(replicas=(plan.replicas[0].replace(gpu="local-cpu"),))
    with pytest.raises(SpecError, match="replica 'r0' stands on local-cpu; exports name drivers and resources of NVIDIA cards"):
        export_plan(local, "vllm")
    amd = plan.replace(replicas=(plan.replicas[0].replace(gpu="mi300x"),))
    with pytest.raises(SpecError, match="stands on mi300x"):
        export_plan(amd, "dynamo")
    full = plan.replace(replicas=(plan.replicas[0].replace(kv_blocks=10**6),))
    with pytest.raises(
        PlanError, match=r"replica 'r0' needs \d+ % of the memory of 1 x h100-sxm for weights, reserve and 1,000,000"
    ):
        export_plan(full, "vllm")
    two = plan.replace(llms=(plan.llms[0], plan.llms[0].replace(name="other")))
    with pytest.raises(SpecError, match="--model: 'x/y': the plan has 2 llms; give each its weights in the plan"):
        export_plan(two, "vllm", model="x/y")
    with pytest.raises(SpecError, match="--to: the plan has 2 llms, a deployment one"):
        export_plan(two, "llm-d")
    with pytest.raises(SpecError, match="--to: the plan has mixed replicas beside prefillers or decoders, a deployment either"):
        export_plan(served(["prefill", "decode", "mixed"]), "dynamo")


def test_dynamo_holds_so_many_kinds_of_replicas_only() -> None:
    plan = served(["mixed"], policy="collocated")
    replica = plan.replicas[0]
    kinds = plan.replace(replicas=tuple(replica.replace(id=f"r{index}", power_cap_w=300 + index) for index in range(25)))
    with pytest.raises(SpecError, match="--to: the plan has 25 kinds of replicas, a deployment 24 at most; use --to vllm"):
        export_plan(kinds, "dynamo")
    fewer = kinds.replace(replicas=kinds.replicas[:24])
    assert export_plan(fewer, "dynamo").files["deployment.yaml"].count("type: worker") == 24


def test_the_router_is_told_how_fast_a_prefiller_is() -> None:
    plan = served(["prefill", "decode"])
    law = plan.replicas[0].coefficients
    text = export_plan(plan, "llm-d").files["router.values.yaml"]
    told = int(re.search(r"peakPrefillThroughput: (\d+)", text).group(1))
    assert told == int(8192 / law.step_s(8192, 8192**2 / 2))  # one chunk of the token budget on an idle replica


def test_scripts_take_cards_and_ports_of_their_own(tmp_path) -> None:
    plan = served(["prefill"] * 3 + ["decode"] * 3, tp=4, tier="h100-sxm@500W")
    files = export_plan(plan, "vllm").files
    scripts = [text for name, text in sorted(files.items()) if name.startswith("replicas/")]
    cards = [re.search(r"CUDA_VISIBLE_DEVICES=([\d,]+)", text).group(1) for text in scripts]
    assert cards == ["0,1,2,3", "4,5,6,7"] * 3  # eight cards per node
    ports = [re.search(r"--port (\d+)", text).group(1) for text in scripts]
    sides = [re.search(r"SIDE_CHANNEL_PORT=(\d+)", text).group(1) for text in scripts]
    assert len(set(ports)) == len(set(sides)) == 6
    assert "nvidia-smi --id=0,1,2,3 --power-limit=500" in scripts[0]
    start = files["start-all.sh"]
    assert all(f"h100-sxm-{node})" in start for node in range(3))
    assert "--prefiller-ports 8100 8101 8102" in files["proxy.sh"]
    assert "--decoder-ports 8103 8104 8105" in files["proxy.sh"]
    assert "proxy.sh" not in export_plan(served(["mixed"], policy="collocated"), "vllm").files


def test_scripts_run_and_pass_every_word_on(tmp_path) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash to run the scripts with")
    plan = served(["prefill", "decode"])
    odd = plan.replace(
        replicas=(plan.replicas[0].replace(id="a b/$(touch x)\n;"), plan.replicas[1].replace(id="r1")),
        links=(), placement=plan.placement.replace(assignments=()),
    )  # fmt: skip
    write_folder(tmp_path / "out", export_plan(odd, "vllm", model="./odd $HOME name").files)
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" "cards=$CUDA_VISIBLE_DEVICES" > "$OUT.$$"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:/usr/bin:/bin", "OUT": str(tmp_path / "words")}
    done = subprocess.run(
        [str(tmp_path / "out" / "start-all.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "x").exists()
    started = [path.read_text().splitlines() for path in tmp_path.glob("words.*")]
    assert len(started) == 2
    for words in started:
        assert words[:2] == ["serve", "./odd $HOME name"]
        assert any(json.loads(word)["kv_connector"] == "NixlConnector" for word in words if word.startswith("{"))
    unknown = subprocess.run(
        [shell, str(tmp_path / "out" / "start-all.sh"), "elsewhere"], env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert unknown.returncode == 2
    assert "'elsewhere' is no node; give one of h100-sxm-0" in unknown.stderr


def test_llm_d_gets_a_deployment_per_pool_with_a_sidecar_before_decoders() -> None:
    files = export_plan(served(["prefill"] * 2 + ["decode"] * 3, tp=2), "llm-d").files
    prefill, decode = yaml.safe_load_all(files["modelserver.yaml"])
    assert (prefill["spec"]["replicas"], decode["spec"]["replicas"]) == (2, 3)
    for each, role in ((prefill, "prefill"), (decode, "decode")):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert labels["llm-d.ai/role"] == role
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        pod = each["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert pod["nodeSelector"] == {"optsched/tier": "h100-sxm-500w"}
        assert ("initContainers" in pod) == (role == "decode")
        outward = pod["initContainers"][0] if role == "decode" else pod["containers"][0]
        assert outward["ports"][0]["containerPort"] == 8000
        port = pod["containers"][0]["ports"][0]["containerPort"]
        assert str(port) in pod["containers"][0]["args"]
    values = yaml.safe_load(files["router.values.yaml"])["router"]
    assert values["modelServers"]["matchLabels"].items() <= prefill["metadata"]["labels"].items()
    assert "nonCachedTokens: 8192" in values["epp"]["pluginsCustomConfig"]["optsched-plugins.yaml"]


def test_llm_d_prefills_every_turn_elsewhere_only_where_the_plan_does() -> None:
    plan = served(["prefill", "decode"], policy="full-disaggregation")
    assert "always-disagg-pd-decider" in export_plan(plan, "llm-d").files["router.values.yaml"]
    assert "session-affinity-filter" not in export_plan(plan, "llm-d").files["router.values.yaml"]
    pinned = export_plan(served(["prefill", "decode"], policy="conserve"), "llm-d")
    config = yaml.safe_load(
        yaml.safe_load(pinned.files["router.values.yaml"])["router"]["epp"]["pluginsCustomConfig"]["optsched-plugins.yaml"]
    )
    assert config["schedulingProfiles"][1]["plugins"][1] == {"pluginRef": "session-affinity-filter"}
    assert any("by the header x-session-id, which clients have to send" in note for note in pinned.notes)
    mixed = export_plan(served(["mixed"], policy="collocated"), "llm-d").files
    assert "disagg-profile-handler" not in mixed["router.values.yaml"]
    assert "llm-d.ai/role: prefill-decode" in mixed["modelserver.yaml"]


def test_pools_of_different_tiers_have_different_names() -> None:
    plan = served(["prefill", "decode", "decode", "decode"])
    first, second, third, fourth = plan.replicas
    blocks = fourth.kv_blocks // 2
    plan = plan.replace(replicas=(first, second, third.replace(power_cap_w=400), fourth.replace(kv_blocks=blocks)))
    names = [each["metadata"]["name"] for each in yaml.safe_load_all(export_plan(plan, "llm-d").files["modelserver.yaml"])]
    assert len(names) == len(set(names)) == 4
    assert all(len(name) <= 63 and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) for name in names)
    components = yaml.safe_load(export_plan(plan, "dynamo").files["deployment.yaml"])["spec"]["components"]
    assert [each["name"] for each in components] == [
        "Frontend", "VllmPrefillWorker", "VllmDecodeWorker", "VllmDecodeWorker2", "VllmDecodeWorker3",
    ]  # fmt: skip


def test_dynamo_gets_a_frontend_and_workers_by_role() -> None:
    manifest = yaml.safe_load(export_plan(served(["prefill", "decode", "decode"], tp=2), "dynamo").files["deployment.yaml"])
    assert (manifest["apiVersion"], manifest["kind"]) == ("nvidia.com/v1beta1", "DynamoGraphDeployment")
    frontend, prefill, decode = manifest["spec"]["components"]
    assert [each["type"] for each in (frontend, prefill, decode)] == ["frontend", "prefill", "decode"]
    assert (prefill["replicas"], decode["replicas"]) == (1, 2)
    container = decode["podTemplate"]["spec"]["containers"][0]
    assert container["args"][:4] == ["--model", "Qwen/Qwen3-8B", "--disaggregation-mode", "decode"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    (_, worker) = yaml.safe_load(export_plan(served(["mixed"], policy="collocated"), "dynamo").files["deployment.yaml"])["spec"][
        "components"
    ]
    assert worker["type"] == "worker"


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"batching": "apt-serve"}, "batching 'apt-serve' keeps hidden caches; vLLM has none"),
        ({"batching": "attain"}, "batching 'attain' is not vLLM's, whose scheduler takes requests in the order of their arrival"),
        ({"policy": "adaptive"}, "placement 'adaptive' decides by backlog and free cache, and has replicas change roles"),
        ({"policy": "optimised"}, "placement 'optimised' assigns each conversation with foresight"),
        ({}, "the 1 assignments of conversations to replicas are a prediction, not an instruction"),
        ({}, "vLLM keeps no watermark of free blocks (1 % in the plan)"),
        ({}, "h100-sxm at 500 W: run nvidia-smi --power-limit=500 as root"),
        ({}, "a conversation's cache stays between its turns as a cached prefix"),
        ({"engine": EngineSpec(max_batched_tokens=64, max_sequences=256)}, "so --max-num-seqs is 64, not 256"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_be_told_is_noted_in_one_line(changes, note) -> None:
    exported = export_plan(served(["mixed", "mixed"], **{"policy": "collocated", **changes}), "vllm")
    found = [each for each in exported.notes if note in each]
    assert len(found) == 1
    assert "\n" not in found[0]
    assert f"- {found[0]}" in exported.files["NOTES.md"].splitlines()


def test_the_largest_fleets_say_each_thing_once() -> None:
    plan = served(["mixed"], policy="collocated")
    many = plan.replace(replicas=tuple(plan.replicas[0].replace(id=f"r{index}") for index in range(64)))
    exported = export_plan(many, "llm-d")
    assert len(exported.notes) < 10
    assert exported.files["modelserver.yaml"].count("kind: Deployment") == 1


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    write_folder(tmp_path / "out", {"a/b.txt": "x", "c.sh": "echo"})
    assert (tmp_path / "out" / "a" / "b.txt").read_text() == "x"
    assert (tmp_path / "out" / "c.sh").stat().st_mode & 0o111
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", {"a.txt": "y"})
    with pytest.raises(SpecError, match="the folder is not empty, and nothing of it is overwritten"):
        write_folder(tmp_path / "out", {"a.txt": "z"})
    with pytest.raises(SpecError, match="there is a file of this name; choose another --out"):
        write_folder(tmp_path / "out" / "c.sh", {"a.txt": "z"})
    with pytest.raises(SpecError, match="the folder that it is to be in does not exist"):
        write_folder(tmp_path / "no" / "out", {"a.txt": "z"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SpecError, match="cannot be written: No space left on device; choose another --out"):
        write_folder(tmp_path / "new", {"a.txt": "z"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


def test_quantised_weights_and_caches_are_named() -> None:
    plan = served(["mixed"], policy="collocated")
    shape = plan.llms[0].shape
    for dtype, kv, expected in (
        ("fp8", None, {"--dtype": "auto", "--quantization": "fp8", "--kv-cache-dtype": "fp8"}),
        ("bf16", "fp8", {"--dtype": "bfloat16", "--kv-cache-dtype": "fp8"}),
        ("int4", "bf16", {"--dtype": "auto"}),
    ):
        narrow = plan.replace(llms=(plan.llms[0].replace(shape=shape.replace(dtype=dtype, kv_dtype=kv)),))
        assert expected.items() <= options(narrow).items()
        assert any("quantised so" in note for note in export_plan(narrow, "vllm").notes) == (dtype == "int4")


def test_weights_of_one_replica_in_another_type_are_served_so() -> None:
    plan = served(["prefill", "decode"])
    first, second = plan.replicas
    narrow = plan.replace(replicas=(first.replace(dtype="fp8"), second))
    assert [options(narrow, index).get("--quantization") for index in (0, 1)] == ["fp8", None]
    assert options(narrow).keys().isdisjoint({"--kv-cache-dtype"})


def test_the_plan_itself_is_not_changed() -> None:
    plan = served(["prefill", "decode"])
    before = plan.model_dump_json()
    for target in ("vllm", "llm-d", "dynamo"):
        export_plan(plan, target)
    assert plan.model_dump_json() == before
