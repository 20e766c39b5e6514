from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from optsched.domain.workload import Workload
from optsched.errors import SpecError, UnknownNameError
from optsched.traces.importers import FORMATS, detect_format, import_trace
from optsched.traces.options import ImportOptions
from optsched.traces.statistics import statistics

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04.5,20,2\n2023-11-16 18:17:03.9799600,10,1\n"
MOONCAKE = (
    '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    '{"timestamp": 1500, "input_length": 512, "output_length": 6, "hash_ids": [0]}\n'
)
CONSERVE = (
    "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over\n0,0,100,100,10,0\n0,1,7,117,20,110\n5,0,50,50,30,0\n"
)
REQUESTS = '{"input_toks": 9, "output_toks": 3, "arrival_time_ns": 2000000000}\n'
SESSION = json.dumps(
    {
        "session_id": "a",
        "arrival_time_ns": 1000000000,
        "sub_requests": [
            {"input_toks": 100, "output_toks": 10, "tool_duration_ns": 500000000},
            {"input_toks": 150, "output_toks": 20, "tool_duration_ns": 0},
            {"input_toks": 120, "output_toks": 5},
        ],
    }
)
SHAREGPT = json.dumps(
    [
        {
            "id": "x",
            "conversations": [
                {"from": "system", "value": "a" * 8},
                {"from": "human", "value": "b" * 9},
                {"from": "gpt", "value": "c" * 4},
                {"from": "human", "value": "d" * 4},
                {"from": "gpt", "value": "e" * 4},
                {"from": "gpt", "value": "f" * 8},
                {"from": "human", "value": "never answered"},
            ],
        },
        {
            "id": "y",
            "conversations": [
                {"from": "gpt", "value": "g" * 4},
                {"from": "human", "value": "h"},
                {"from": "gpt", "value": "i"},
            ],
        },
    ]
)  # fmt: skip
OPENAI = json.dumps(
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a" * 8}, {"type": "image_url", "image_url": {"url": "u"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "ls", "arguments": '{"a":1}'}}]},
            {"role": "tool", "content": "b" * 12},
            {"role": "assistant", "content": "c" * 4},
        ]
    }
)  # fmt: skip
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
BURSTGPT += "45.0,GPT-4,1087,230,1317,API log\n"
VLLM = '{"request_id": "bench-0", "input_toks": 12, "output_toks": 4, "arrival_time": 1777142838.25, "queued_ts": 1.0}\n'


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _read(path: Path, text: str, **options: object) -> Workload:
    return import_trace(_write(path, text), options=ImportOptions(**options))  # type: ignore[arg-type]


def test_azure_requests_are_sorted_and_start_at_zero(tmp_path: Path) -> None:
    workload = _read(tmp_path / "a.csv", AZURE)
    assert workload.conversation_id.tolist() == [1, 0]
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 0.52004])
    assert workload.new_tokens.tolist() == [10, 20]
    assert workload.output_tokens.tolist() == [1, 2]


def test_azure_files_of_2024_name_their_time_zone_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00+00:00,5,6\r\n2024-05-10 02:00:01.25+02:00,7,8"
    assert _read(tmp_path / "a.csv", text).arrival_s.tolist() == [0.0, 1.25]


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:17:03,{n},1\n" for n in range(1, 60))
    workload = _read(tmp_path / "a.csv", AZURE.splitlines()[0] + "\n" + rows)
    assert workload.new_tokens.tolist() == list(range(1, 60))


def test_mooncake_keeps_shared_prefixes(tmp_path: Path) -> None:
    workload = _read(tmp_path / "m.jsonl", MOONCAKE)
    assert workload.prefix_blocks is not None
    assert workload.prefix_offset is not None
    assert (workload.prefix_offset.tolist(), workload.prefix_blocks.tolist()) == ([0, 2, 3], [0, 1, 0])
    assert workload.arrival_s.tolist() == [0.0, 1.5]


def test_prefixes_follow_their_requests_when_arrivals_are_sorted(tmp_path: Path) -> None:
    workload = _read(tmp_path / "m.jsonl", "".join(reversed(MOONCAKE.splitlines(keepends=True))))
    assert workload.prefix_blocks is not None
    assert workload.prefix_blocks.tolist() == [0, 1, 0]
    assert workload.new_tokens.tolist() == [600, 512]


def test_conserve_conversations_keep_their_numbers_and_have_no_arrivals(tmp_path: Path) -> None:
    workload = _read(tmp_path / "c.csv", CONSERVE)
    assert workload.conversation_id.tolist() == [0, 5]
    assert workload.first_turn.tolist() == [0, 2, 3]
    assert workload.new_tokens.tolist() == [100, 7, 50]
    assert not workload.arrivals_known


def test_an_agent_session_appends_what_each_call_adds_and_waits_for_its_tools(tmp_path: Path) -> None:
    workload = _read(tmp_path / "l.jsonl", REQUESTS + "\n" + SESSION)
    assert workload.conversation_id.tolist() == [1, 0]
    assert workload.arrival_s.tolist() == [0.0, 1.0]
    # The third call is shorter than the context so far: it appends the least a call can.
    assert workload.new_tokens.tolist() == [100, 40, 1, 9]
    assert workload.gap_s.tolist() == [0.0, 0.5, 0.0, 0.0]


def test_sharegpt_dialogues_become_turns(tmp_path: Path) -> None:
    workload = _read(tmp_path / "s.json", SHAREGPT, chars_per_token=4.0)
    assert workload.first_turn.tolist() == [0, 2, 3]
    assert workload.new_tokens.tolist() == [2 + 3, 1, 1 + 1]
    assert workload.output_tokens.tolist() == [1, 1 + 2, 1]
    assert not workload.arrivals_known


def test_openai_dialogues_count_text_parts_and_tool_calls(tmp_path: Path) -> None:
    workload = _read(tmp_path / "o.jsonl", OPENAI, chars_per_token=4.0)
    assert workload.new_tokens.tolist() == [2, 3]
    assert workload.output_tokens.tolist() == [3, 1]  # "ls" and '{"a":1}' are nine characters


def test_tokens_are_counted_with_the_given_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = json.dumps(
        {"messages": [{"role": "user", "content": "three little words"}, {"role": "assistant", "content": "no two"}]}
    )
    workload = _read(tmp_path / "o.jsonl", text, tokenizer=tmp_path / "tokenizer.json")
    assert (workload.new_tokens.tolist(), workload.output_tokens.tolist()) == ([3], [2])


def test_burstgpt_and_vllm_logs_are_read(tmp_path: Path) -> None:
    assert _read(tmp_path / "b.csv", BURSTGPT).arrival_s.tolist() == [0.0, 40.0]
    workload = _read(tmp_path / "v.jsonl", VLLM)
    assert (workload.new_tokens.tolist(), workload.output_tokens.tolist()) == ([12], [4])


def test_failed_requests_are_left_out_only_when_asked(tmp_path: Path) -> None:
    text = BURSTGPT + "50,GPT-4,100,0,100,API log\n"
    with pytest.raises(SpecError, match=r"line 4: Response tokens: 0: must be at least 1; .* --drop-empty"):
        _read(tmp_path / "b.csv", text)
    assert _read(tmp_path / "b.csv", text, drop_empty=True).num_conversations == 2
    dialogues = json.dumps([*json.loads(SHAREGPT), {"conversations": []}])
    with pytest.raises(SpecError, match=r"record 3: no answered prompt, or an empty text; leave .* --drop-empty"):
        _read(tmp_path / "s.json", dialogues, chars_per_token=4.0)
    assert _read(tmp_path / "s.json", dialogues, chars_per_token=4.0, drop_empty=True).num_conversations == 2


def test_texts_need_a_way_to_count_tokens(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"give --tokenizer TOKENIZER.json to count them, or --chars-per-token 4"):
        _read(tmp_path / "s.json", SHAREGPT)
    with pytest.raises(SpecError, match=r"t.json: no such file; give the tokenizer.json"):
        _read(tmp_path / "s.json", SHAREGPT, tokenizer=tmp_path / "t.json")
    with pytest.raises(SpecError, match=r"t.json: not a tokenizer.json"):
        _read(tmp_path / "s.json", SHAREGPT, tokenizer=_write(tmp_path / "t.json", "{}"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chars_per_token": 0.0}, r"chars_per_token: 0.0 characters per token: must be positive"),
        ({"chars_per_token": 4.0, "tokenizer": Path("t.json")}, r"not both"),
        ({"seed": -1}, r"seed: -1: must not be negative"),
        ({"window_s": (10.0, 5.0)}, r"window: 10:5: must be two times"),
        ({"rate_per_s": 0.0}, r"rate: 0.0: must be a positive number"),
    ],
)
def test_meaningless_options_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        ImportOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.csv", AZURE, "azure"),
        ("t.csv", CONSERVE, "conserve"),
        ("t.csv", BURSTGPT, "burstgpt"),
        ("t.csv", "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens\n1.0,a,2,x,3,4\n", "burstgpt"),
        ("t.jsonl", MOONCAKE, "mooncake"),
        ("t.jsonl", "\n" + REQUESTS, "llmservingsim"),
        ("t.jsonl", SESSION, "llmservingsim"),
        ("t.json", SHAREGPT, "sharegpt"),
        ("t.jsonl", OPENAI, "openai"),
        ("t.jsonl", VLLM, "vllm-log"),
        ("t.parquet", "", "parquet"),
        ("t.tar.gz", "", "servegen"),
    ],
)
def test_formats_are_told_by_the_file(name: str, text: str, expected: str, tmp_path: Path) -> None:
    assert detect_format(_write(tmp_path / name, text)) == expected
    assert expected in FORMATS


def test_what_is_no_known_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"looks like none of the formats azure, .*; name one with --format"):
        import_trace(_write(tmp_path / "t.csv", "a,b\n1,2\n"))
    with pytest.raises(SpecError, match=r"looks like none of the formats"):
        import_trace(_write(tmp_path / "t.json", "{}"))
    with pytest.raises(SpecError, match=r"no such file"):
        import_trace(tmp_path / "nothing.csv")
    with pytest.raises(UnknownNameError, match=r"Unknown trace format 'azur'; did you mean: azure"):
        import_trace(tmp_path / "t.csv", format="azur")


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    for name, text in (("m.jsonl", MOONCAKE), ("s.json", SHAREGPT), ("a.csv", AZURE)):
        seen: list[float] = []
        import_trace(_write(tmp_path / name, text), options=_options(name), advance=seen.append)
        assert seen[-1] == (tmp_path / name).stat().st_size
        assert seen == sorted(seen)


def _options(name: str) -> ImportOptions:
    return ImportOptions(chars_per_token=4.0 if name.startswith("s") else None)


def test_one_json_array_larger_than_the_read_buffer_is_read_in_pieces(tmp_path: Path) -> None:
    dialogue = {"conversations": [{"from": "human", "value": "é" * 5000}, {"from": "gpt", "value": "b" * 40}]}
    text = " [ " + " ,\n ".join([json.dumps(dialogue, ensure_ascii=False)] * 400) + " ] \n"
    workload = _read(tmp_path / "s.json", text, chars_per_token=4.0)
    assert workload.num_conversations == 400
    assert set(workload.new_tokens.tolist()) == {1250}


def test_a_record_of_more_than_64_mib_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(AZURE.encode() + b"9" * (1 << 26))
    with pytest.raises(SpecError, match=r"line 4: longer than 64 MiB"):
        import_trace(path, "azure")


def _totals(workload: Workload) -> tuple[int, int, int]:
    return workload.num_conversations, int(workload.new_tokens.sum()), int(workload.output_tokens.sum())


def test_the_replayed_part_of_the_conserve_trace_has_the_known_totals(conserve_trace: Path) -> None:
    whole = import_trace(conserve_trace)
    assert (whole.num_conversations, whole.num_turns) == (2294, 22805)
    replayed = whole.head(255, 5)
    assert int(replayed.first_turn_tokens.sum()) == 3_897_772
    assert int(replayed.output_tokens.sum()) == 222_377
    assert statistics(replayed).context_tokens == 20_114_359
    assert replayed.conversation_id.tolist() == list(range(255))


@pytest.mark.parametrize(
    ("file", "expected", "span_s"),
    [
        ("traces/AzureLLMInferenceTrace_code.csv", (8819, 18_059_974, 245_896), 3435.948056),
        ("traces/AzureLLMInferenceTrace_conv.csv", (19366, 22_361_870, 4_088_665), 3501.721937),
        ("traces/conversation_trace.jsonl", (12031, 144_793_823, 4_122_048), 3536.999),
        ("traces/synthetic_trace.jsonl", (3993, 61_194_628, 595_432), 1022.025),
        ("traces/sharegpt-llama-3.1-8b-300-sps10.jsonl", (300, 257_239, 195_753), 29.136836395),
        ("bench_vllm/RTXPRO6000/Llama-3.1-8B/vllm/requests.jsonl", (300, 257_239, 195_753), 29.121193),
    ],
)
def test_public_traces_have_their_known_totals(
    file: str, expected: tuple[int, int, int], span_s: float, third_party_data: Path
) -> None:
    path = third_party_data / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    workload = import_trace(path)
    assert _totals(workload) == expected
    assert workload.arrival_s[0] == 0
    assert workload.arrival_s[-1] == pytest.approx(span_s, abs=1e-6)


def test_the_vllm_log_replays_the_workload_it_was_given(third_party_data: Path) -> None:
    given = import_trace(third_party_data / "traces/sharegpt-llama-3.1-8b-300-sps10.jsonl")
    logged = import_trace(third_party_data / "bench_vllm/RTXPRO6000/Llama-3.1-8B/vllm/requests.jsonl")
    assert np.array_equal(given.new_tokens, logged.new_tokens)
    assert np.array_equal(given.output_tokens, logged.output_tokens)
    assert np.abs(given.arrival_s - logged.arrival_s).max() < 0.05


def test_mooncake_blocks_number_as_published(third_party_data: Path) -> None:
    numbers = statistics(import_trace(third_party_data / "traces/conversation_trace.jsonl"))
    assert (numbers.prefix_blocks, numbers.repeated_prefix_blocks) == (288_500, 105_710)


def test_the_archive_helper_refuses_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"not a readable archive"):
        import_trace(_write(tmp_path / "t.tar.gz", "not an archive"))
    with pytest.raises(SpecError, match=r"no such file"):
        import_trace(tmp_path / "missing.tar.gz")
    with tarfile.open(tmp_path / "e.tar.gz", "w:gz"):
        pass
    with pytest.raises(SpecError, match=r"has no chunk-N-trace.csv"):
        import_trace(tmp_path / "e.tar.gz")
