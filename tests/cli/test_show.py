from __future__ import annotations

import json
from pathlib import Path

import pytest

from optsched import catalog
from optsched.cli import invoke
from optsched.domain.hardware import Gpu
from optsched.domain.llm import Llm
from optsched.files import open_envelope, validate

KINDS = ["gpus", "tiers", "llms", "workloads", "scenarios", "policies"]
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_as_a_table_and_as_one_json_object(kind: str, capsys: Captured) -> None:
    assert invoke(["show", kind]) == 0
    assert capsys.readouterr().out.startswith((kind, f"no {kind}"))
    assert invoke(["show", kind, "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)[kind]
    names = {
        "gpus": catalog.gpus(),
        "tiers": [catalog.tier(gpu).name for gpu in catalog.gpus()],
        "llms": catalog.llms(),
        "workloads": catalog.recipes(),
        "scenarios": catalog.scenarios(),
    }
    if kind in names:
        assert [row["name"] for row in rows] == names[kind]
    assert captured.err == ""


@pytest.mark.parametrize(
    ("kind", "name"), [("gpus", "a40"), ("tiers", "a40@200W"), ("llms", "mixtral-8x7b"), ("policies", "conserve")]
)
def test_one_record_is_shown_in_full(kind: str, name: str, capsys: Captured) -> None:
    assert invoke(["show", kind, name]) == 0
    assert f"{kind}: {name}" in capsys.readouterr().out


def test_every_packaged_scenario_and_workload_is_shown_in_full(capsys: Captured) -> None:
    for kind, names in (("scenarios", catalog.scenarios()), ("workloads", catalog.recipes())):
        for name in names:
            assert invoke(["show", kind, name]) == 0
            assert invoke(["show", kind, name, "--json"]) == 0
    capsys.readouterr()


def test_a_gpu_s_table_has_units_in_its_names_and_the_sources(capsys: Captured) -> None:
    invoke(["show", "gpus", "a40"])
    out = capsys.readouterr().out
    for expected in (
        "datasheet.memory_bytes_per_s",
        "datasheet.sources.flops",
        "NVIDIA A40 datasheet",
        "price.source",
        "efficiency.origin",
    ):
        assert expected in out


def test_the_json_of_a_record_reads_back_as_the_record(capsys: Captured) -> None:
    invoke(["show", "gpus", "h200", "--json"])
    assert validate(Gpu, open_envelope(json.loads(capsys.readouterr().out), "gpu")) == catalog.gpu("h200")
    invoke(["show", "llms", "deepseek-v3", "--json"])
    assert validate(Llm, open_envelope(json.loads(capsys.readouterr().out), "llm")) == catalog.llm("deepseek-v3")


def test_llms_say_whether_the_workers_run_them(capsys: Captured) -> None:
    invoke(["show", "llms", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["llms"]}
    assert rows["qwen3-0.6b"]["runnable"] is True
    assert rows["qwen3-0.6b"]["hidden_ratio"] == 0.5
    assert rows["mixtral-8x7b"]["runnable"] is False
    assert "family mixtral" in rows["mixtral-8x7b"]["refusal"]
    assert (rows["opt-13b"]["num_params"], rows["opt-13b"]["kv_bytes_per_token"]) == (12_853_473_280, 819_200)


def test_a_cap_slows_the_clock_by_less_than_it_saves_power(capsys: Captured) -> None:
    invoke(["show", "tiers", "a40@200W", "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (row["power_cap_w"], row["board_w"]) == (200, 300)
    assert (200 - 77) / (300 - 77) < row["clock_share"] < 1
    assert row["gpu"]["name"] == "a40"


def test_policies_of_both_kinds_say_what_they_do(capsys: Captured) -> None:
    invoke(["show", "policies", "--json"])
    rows = json.loads(capsys.readouterr().out)["policies"]
    assert {row["kind"] for row in rows} == {"batching", "placement"}
    assert {"vllm-chunked", "apt-serve", "collocated", "conserve"} <= {row["name"] for row in rows}
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpus", "a41"], "Unknown gpu 'a41'; did you mean: a40"),
        (["gpus", "no-such-gpu"], "Unknown gpu 'no-such-gpu'"),
        (["llms", "opt-13"], "Unknown llm 'opt-13'; did you mean: opt-13b"),
        (["tiers", "a40@20W"], "power cap 20 W of a40 must lie above its idle power"),
        (["scenarios", "no-such"], "Unknown scenario 'no-such'"),
        (["workloads", "no-such"], "Unknown workload 'no-such'"),
        (["policies", "conserv"], "Unknown policy 'conserv'; did you mean: conserve"),
    ],
)
def test_an_unknown_name_exits_with_1_and_one_line(words: list[str], message: str, capsys: Captured) -> None:
    assert invoke(["show", *words]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unknown_kind_exits_with_2_and_the_choices(capsys: Captured) -> None:
    assert invoke(["show", "cards"]) == 2
    assert '"policies"' in capsys.readouterr().err
    assert invoke(["show"]) == 2


def test_an_llm_is_shown_from_a_hugging_face_config(tmp_path: Path, capsys: Captured) -> None:
    from transformers_configs import transformers_config

    path = tmp_path / "config.json"
    path.write_text(json.dumps(transformers_config(catalog.llm("tiny-llama")).to_dict()))
    assert invoke(["show", "llms", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hidden_size"] == 64


def test_brackets_in_a_user_s_file_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    source = catalog.data_root() / "models" / "links"
    assert source.is_dir()
    (tmp_path / "llms").mkdir()
    text = (source.parent / "llms" / "tiny-opt.toml").read_text()
    (tmp_path / "llms" / "odd.toml").write_text(text.replace('"tiny-opt"', '"odd"').replace("Tiny OPT shape", "a [/b] [bold]"))
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path))
    assert invoke(["show", "llms", "odd"]) == 0
    assert "a [/b] [bold]" in capsys.readouterr().out
