"""The export command, as a user calls it."""

from __future__ import annotations

import json

import pytest
from export_examples import served

from optsched.cli import invoke
from optsched.files import save


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save(served(["prefill", "decode"]), "plan", path)
    return path


@pytest.mark.parametrize("to", ["vllm", "llm-d", "dynamo"])
def test_export_writes_a_folder_and_prints_it_as_json(plan_file, tmp_path, capsys, to) -> None:
    out = tmp_path / "out"
    assert invoke(["export", str(plan_file), "--to", to, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"to", "out", "files", "notes", "replicas"}
    assert printed["files"] == sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert [each["role"] for each in printed["replicas"]] == ["prefill", "decode"]
    assert printed["replicas"][0]["model"] == "Qwen/Qwen3-8B"
    assert len(printed["notes"]) == (out / "NOTES.md").read_text().count("\n- ")


def test_export_prints_files_on_stdout_and_notes_on_stderr(plan_file, tmp_path, capsys) -> None:
    assert invoke(["export", str(plan_file), "--to", "dynamo", "--out", str(tmp_path / "out"), "--model", "me/mine"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(tmp_path / "out" / name) for name in ("NOTES.md", "deployment.yaml")]
    assert printed.err.startswith("Note: ")
    assert "me/mine" in (tmp_path / "out" / "deployment.yaml").read_text()


def test_export_refuses_in_one_line_and_leaves_nothing_behind(plan_file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert invoke(["export", str(tmp_path / "absent.json"), "--to", "vllm", "--out", str(out)]) == 1
    assert "no such file; check the path" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert invoke(["export", str(plan_file), "--to", "vllm", "--out", str(tmp_path / "taken")]) == 1
    assert "the folder is not empty" in capsys.readouterr().err
    assert invoke(["export", str(plan_file), "--to", "sglang", "--out", str(out)]) == 2
    assert invoke(["export", str(plan_file), "--to", "vllm"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
