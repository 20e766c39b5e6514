"""Readers of whole steps: what they keep, what they leave out and count, and how they refuse other files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optsched.errors import SpecError
from optsched.profiles.distserve import read_distserve_steps
from optsched.profiles.splitwise import read_splitwise_runs, read_splitwise_steps

HEADER = (
    "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,tensor_parallel"
)
PROFILE = {
    "facebook/opt-13b": {
        "1": {
            "decoding_large_small_bs_threshold": 95,
            "prefill": [18.0, 0.1, 7e-6],
            "decoding_smallbs": [20.0, 6e-4, 0.04],
            "decoding_largebs": [7.0, 6e-4, 0.16],
        }
    }
}


def written(folder: Path, *rows: str) -> Path:
    path = folder / "perf_model.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def run(*, prompt: int = 512, batch: int = 1, power: float = 0.7, whole_ms: float | None = None, gpu: str = "a100-80gb") -> str:
    """One run of 11 tokens: 100 ms of prefill, 50 ms a token."""
    return f"llama2-70b,{gpu},{prompt},{batch},11,1.0,{power},100,50,{600 if whole_ms is None else whole_ms},2"


def test_a_run_gives_a_prefill_and_a_decode_step_in_seconds(tmp_path: Path) -> None:
    rows = read_splitwise_steps(written(tmp_path, run(), run()))
    assert rows.kind.tolist() == ["prefill", "decode"]
    assert rows.seconds.tolist() == pytest.approx([0.1, 0.05])
    assert rows.context_tokens.tolist() == [0, 512 + 5.5]
    assert (set(rows.llm), set(rows.gpu), set(rows.tp)) == ({"llama-2-70b"}, {"a100-80gb"}, {2})


def test_synthetic_rows_of_a_capped_card_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = read_splitwise_steps(written(tmp_path, run(), run(gpu="h100-80gb-pcap")))
    assert len(rows) == 2
    assert rows.left_out["synthetic rows of a capped H100"] == 1


def test_batches_that_were_split_or_ended_early_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = read_splitwise_steps(written(tmp_path, run(), run(batch=64, whole_ms=6000), run(batch=2, whole_ms=300)))
    assert rows.sequences.tolist() == [1, 1]
    assert rows.left_out["batches that were split or ended early"] == 2


def test_runs_without_power_or_with_less_than_either_phase_draws_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = read_splitwise_runs(written(tmp_path, run(), run(prompt=8192, power=0.18), run(batch=32, power=0.0)))
    assert rows.power_share.tolist() == [0.7]
    assert rows.left_out["runs without a recorded power"] == 1
    assert rows.left_out["runs whose mean power lies below that of both phases"] == 1


def test_other_tables_and_unknown_cards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("model,hardware\nx,y\n")
    with pytest.raises(SpecError, match=r"columns tensor_parallel, .* are missing; give other.csv as published"):
        read_splitwise_steps(path)
    with pytest.raises(SpecError, match="hardware 'v100' is none of a100-80gb, h100-80gb; drop its rows"):
        read_splitwise_steps(written(tmp_path, run(gpu="v100")))
    with pytest.raises(SpecError, match=r"give the file as published"):
        read_splitwise_steps(tmp_path / "absent.csv")


def test_formulas_are_sampled_within_the_cache_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "profiler-a100-80g.distserve.json"
    path.write_text(json.dumps(PROFILE))
    rows = read_distserve_steps(path, {("opt-13b", 1): 20_000})
    one = (rows.kind == "decode") & (rows.sequences == 8) & (rows.context_tokens == 1024)
    assert rows.seconds[one].tolist() == pytest.approx([(20 + 6e-4 * 8 * 1024 + 0.04 * 8) / 1e3])
    large = (rows.kind == "decode") & (rows.sequences == 128)
    assert rows.seconds[large].tolist() == pytest.approx([(7 + 6e-4 * 128 * 128 + 0.16 * 128) / 1e3])
    prompts = (rows.kind == "prefill") & (rows.sequences == 4) & (rows.new_tokens == 512)
    assert rows.seconds[prompts].tolist() == pytest.approx([(18 + 0.1 * 2048 + 7e-6 * 4 * 512**2) / 1e3])
    assert np.all(rows.sequences * (rows.new_tokens + rows.context_tokens) <= 20_000)
    assert rows.left_out["steps beyond the cache of the replica"] == 30 - len(rows)


def test_profiles_with_another_name_or_content_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("profile.json", "{}", r"the name must end in .distserve.json or .vllm.json"),
        (
            "profiler-a100-80g.vllm.json",
            '{"facebook/opt-13b": {"1": {}}}',
            "while reading the profile; give the file as published",
        ),
    ):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(SpecError, match=message):
            read_distserve_steps(path, {})


def test_the_published_table_has_the_runs_it_is_known_for(third_party_data: Path) -> None:
    path = third_party_data / "profiles" / "splitwise" / "perf_model.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    steps, runs = read_splitwise_steps(path), read_splitwise_runs(path)
    assert steps.left_out == {"synthetic rows of a capped H100": 420, "batches that were split or ended early": 35}
    assert set(steps.llm) == {"llama-2-70b", "bloom-176b"}
    assert set(runs.gpu) == {"a100-80gb"}
    assert runs.power_share.min() > 0.4
