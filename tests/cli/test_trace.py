from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optsched import catalog
from optsched.cli import invoke
from optsched.domain.workload import Recipe
from optsched.files import load, sha256_of
from optsched.traces.table import read_parquet

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04.5,20,2\n2023-11-16 18:17:03.5,10,1\n"
DIALOGUE = json.dumps({"messages": [{"role": "user", "content": "a" * 8}, {"role": "assistant", "content": "b" * 4}]})


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    (tmp_path / "azure.csv").write_text(AZURE)
    return tmp_path / "azure.csv"


def test_import_writes_the_one_schema(azure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.parquet"
    assert invoke(["trace", "import", str(azure), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert captured.err == ""
    assert (answer["format"], answer["conversations"], answer["prompt_tokens"]) == ("azure", 2, 30)
    assert answer["sha256"] == sha256_of(out)
    assert read_parquet(out).arrival_s.tolist() == [0.0, 1.0]


def test_import_passes_its_options_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o.jsonl").write_text(DIALOGUE + "\n" + '{"messages": []}\n')
    arguments = ["trace", "import", str(tmp_path / "o.jsonl"), "--out", str(tmp_path / "t.parquet")]
    assert invoke([*arguments, "--chars-per-token", "4"]) == 1
    assert "--drop-empty" in capsys.readouterr().err
    assert invoke([*arguments, "--chars-per-token", "2", "--drop-empty", "--format", "openai", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 4


def test_stats_prints_a_table_or_one_object(azure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["trace", "stats", str(azure)]) == 0
    shown = capsys.readouterr().out
    assert "conversations: 2" in shown
    assert "first_turn_tokens" in shown
    assert invoke(["trace", "stats", str(azure), "--conversations", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["conversations"], answer["output_tokens"], answer["later_turn_tokens"]) == (1, 1, None)
    assert answer["first_turn_tokens"]["p50"] == 10


def test_stats_writes_a_recipe_with_its_origin(azure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.toml"
    words = ["--recipe-out", str(out), "--quantiles", "0,0.5,1", "--title", "Mine", "--origin", "a test", "--json"]
    assert invoke(["trace", "stats", str(azure), *words]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == str(out)
    recipe = load(Recipe, "workload", out)
    assert (recipe.name, recipe.title) == ("mine", "Mine")
    assert recipe.origin.startswith("a test; quantiles of 2 conversations of one turn in azure.csv (sha256 ")
    assert recipe.turns[0].new_tokens.quantiles == ((0, 10), (0.5, 15), (1, 20))


def test_stats_of_the_conserve_trace_gives_the_packaged_recipe(
    conserve_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "swe-agent.toml"
    words = ["--conversations", "255", "--turns", "5", "--recipe-out", str(out), "--json"]
    assert invoke(["trace", "stats", str(conserve_trace), *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["conversations"], answer["output_tokens"], answer["context_tokens"]) == (255, 222_377, 20_114_359)
    assert load(Recipe, "workload", out).turns == catalog.recipe("swe-agent").turns


def test_synthesise_draws_the_same_lengths_with_and_without_arrivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["trace", "synthesise", "swe-agent-quickstart", "--conversations", "6", "--seed", "3"]
    assert invoke([*arguments, "--out", str(tmp_path / "a.parquet"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["conversations"], answer["turns"], answer["arrivals_known"]) == (6, 30, False)
    assert invoke([*arguments, "--out", str(tmp_path / "b.parquet"), "--rate", "2"]) == 0
    without, timed = read_parquet(tmp_path / "a.parquet"), read_parquet(tmp_path / "b.parquet")
    assert timed.arrivals_known
    assert np.array_equal(without.new_tokens, timed.new_tokens)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["import", "AZURE", "--out", "t.csv"], "give --out a name that ends in .parquet"),
        (["import", "AZURE", "--out", "t.parquet", "--format", "azur"], "Unknown trace format 'azur'; did you mean: azure"),
        (["import", "nowhere.csv", "--out", "t.parquet"], "nowhere.csv: no such file; check the path"),
        (["import", "AZURE", "--out", "t.parquet", "--window", "12"], "window: '12': must be START:END in seconds"),
        (["import", "AZURE", "--out", "t.parquet", "--sample-rate", "-1"], "rate: -1.0: must be a positive number"),
        (["stats", "AZURE", "--conversations", "3"], "conversations: 3: the trace has only 2; ask for fewer"),
        (["stats", "AZURE", "--turns", "0"], "turns: 0: must be at least 1"),
        (["stats", "AZURE", "--recipe-out", "r.txt"], "give --recipe-out a name that ends in .toml"),
        (["stats", "AZURE", "--recipe-out", "r.toml", "--quantiles", "0,x"], "quantiles: '0,x': must be numbers from 0 to 1"),
        (["stats", "AZURE", "--recipe-out", "r.toml", "--quantiles", "0,0.5"], "quantiles: must increase from 0 to 1"),
        (["synthesise", "swe-agnt", "--conversations", "1", "--out", "t.parquet"], "Unknown workload 'swe-agnt'; did you mean"),
        (["synthesise", "chat", "--conversations", "0", "--out", "t.parquet"], "0 conversations: draw at least 1"),
        (["synthesise", "chat", "--conversations", "1", "--out", "t.parquet", "--rate", "0"], "rate_per_s: 0.0: "),
        (["synthesise", "chat", "--conversations", "1", "--out", "t.parquet", "--seed", "-1"], "seed: -1: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], match: str, azure: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(azure.parent)
    before = sorted(path.name for path in azure.parent.iterdir())
    assert invoke(["trace", *(str(azure) if word == "AZURE" else word for word in arguments)]) == 1
    captured = capsys.readouterr()
    assert match in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in azure.parent.iterdir()) == before


def test_wrong_usage_exits_with_2(azure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["trace", "import", str(azure)]) == 2
    assert invoke(["trace", "import", str(azure), "--out"]) == 2
    assert invoke(["trace", "draw"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
