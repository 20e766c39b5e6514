"""Every damaged line is named with its file, line, field, value and the rule it breaks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optsched.errors import SpecError
from optsched.traces.importers import FORMATS, import_trace
from optsched.traces.options import ImportOptions

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,10,1\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
CONSERVE = "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over\n0,0,100,100,10,0\n"
MOONCAKE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
HUGE = "9" * 30

DAMAGES = [
    ("azure", AZURE + "2023-11-16 18:17:04,abc,1\n", r"line 3: ContextTokens: 'abc': must be a whole number; fix"),
    ("azure", AZURE + "2023-11-16 18:17:04,10,\n", r"line 3: GeneratedTokens: '': must be a whole number"),
    ("azure", AZURE + "2023-11-16 18:17:04,10,-4\n", r"line 3: GeneratedTokens: -4: must be at least 1"),
    ("azure", AZURE + "2023-11-16 18:17:04,0,4\n", r"line 3: ContextTokens: 0: must be at least 1; .*--drop-empty"),
    ("azure", AZURE + "2023-11-16 18:17:04,1.5,4\n", r"line 3: ContextTokens: '1.5': must be a whole number"),
    ("azure", AZURE + "2023-11-16 18:17:04,1_0,4\n", r"line 3: ContextTokens: '1_0': must be a whole number"),
    ("azure", AZURE + f"2023-11-16 18:17:04,{HUGE},4\n", r"line 3: ContextTokens: '9+': must be a whole number"),
    ("azure", AZURE + "2023-11-16 18:17:04,9999999999,4\n", r"line 3: ContextTokens: 9999999999: must be at most 2147483647"),
    ("azure", AZURE + "yesterday,10,4\n", r"line 3: TIMESTAMP: 'yesterday': must be a time like"),
    ("azure", AZURE + "2023-13-16 18:17:04,10,4\n", r"line 3: TIMESTAMP"),
    ("azure", AZURE + "2023-11-16 18:1", r"line 3: 1 cells where the header has 3; is the file truncated\?"),
    ("azure", AZURE + "2023-11-16 18:17:04,10,4,5\n", r"line 3: 4 cells where the header has 3"),
    ("azure", "TIMESTAMP,ContextTokens\n", r"line 1: no column 'GeneratedTokens'; this format has TIMESTAMP, Cont"),
    ("azure", AZURE.splitlines()[0], r"has no requests; was another file meant\?"),
    ("azure", "", r"line 1: no column 'TIMESTAMP'"),
    ("azure", AZURE + '"' + "x" * 200_000, r"line 3: not valid CSV: field larger than field limit"),
    ("burstgpt", BURSTGPT + "nan,GPT-4,10,4,14,API log\n", r"line 2: Timestamp: 'nan': must be a finite number"),
    ("burstgpt", BURSTGPT + "-5,GPT-4,10,4,14,API log\n", r"line 2: Timestamp: -5: must be at least 0"),
    ("burstgpt", BURSTGPT + "5,GPT-4,10,0,10,API log\n", r"line 2: Response tokens: 0: must be at least 1"),
    ("conserve", CONSERVE + "0,2,7,117,20,110\n", r"line 3: iter_id: 2: must be 1; turns count from 0"),
    ("conserve", CONSERVE + "0,1,7,117,20,100\n", r"line 3: carried_over: 100: must be 110; that is what the turns before left"),
    ("conserve", CONSERVE + "0,1,7,118,20,110\n", r"line 3: total_input: 118: must be carried_over \+ appended_input, 117"),
    ("conserve", CONSERVE + "0,1,7,117,0,110\n", r"line 3: out_token_size: 0: must be at least 1"),
    ("conserve", CONSERVE + "1,0,0,0,5,0\n", r"line 3: appended_input: 0: must be at least 1"),
    ("conserve", CONSERVE + "1,0,5,5,5,0\n0,0,5,5,5,0\n", r"line 4: conv_id: 0: the turns of a conversation must stand together"),
    ("mooncake", MOONCAKE + '{"timestamp": 0, "input_', r"line 2: not valid JSON: .*; is the file truncated\?"),
    ("mooncake", MOONCAKE + "[1]\n", r"line 2: \[1\]: must be a JSON object"),
    ("mooncake", MOONCAKE + MOONCAKE.replace("600", "NaN"), r"line 2: not valid JSON: NaN is not a number"),
    ("mooncake", MOONCAKE.replace('"output_length": 5, ', ""), r"line 1: output_length: missing; add it, or choose another"),
    ("mooncake", MOONCAKE.replace("[0, 1]", "[0]"), r"line 1: hash_ids: 1 blocks: a prompt of this input_length has 2"),
    ("mooncake", MOONCAKE.replace("[0, 1]", "[0, -1]"), r"line 1: hash_ids\[1\]: -1: must be at least 0"),
    ("mooncake", MOONCAKE.replace("[0, 1]", "7"), r"line 1: hash_ids: 7: must be a list of whole numbers"),
    ("mooncake", MOONCAKE.replace("600", "true"), r"line 1: input_length: True: must be a whole number"),
    ("mooncake", MOONCAKE.replace("600", f"{HUGE}0"), r"line 1: input_length: 9+0: must be at most"),
    ("mooncake", MOONCAKE.replace("600", "9" * 5000), r"line 1: not valid JSON"),
    ("mooncake", "[" * 100_000, r"not valid JSON"),
    ("mooncake", '{"a":' * 100_000, r"line 1: not valid JSON"),
    ("llmservingsim", '{"arrival_time_ns": 0, "sub_requests": []}', r"line 1: sub_requests: no calls; .*--drop-empty"),
    ("llmservingsim", '{"arrival_time_ns": 0, "sub_requests": [3]}', r"line 1: sub_requests\[0\]: 3: must be an object"),
    ("llmservingsim", '{"arrival_time_ns": 0, "sub_requests": {}}', r"line 1: sub_requests: {}: must be a list of objects"),
    (
        "llmservingsim",
        '{"arrival_time_ns": 0, "sub_requests": [{"input_toks": 1}]}',
        r"line 1: sub_requests\[0\]: output_toks: missing",
    ),
    ("vllm-log", '{"input_toks": 1, "output_toks": 2}', r"line 1: arrival_time: missing"),
    ("sharegpt", '{"conversations": [{"from": "cat", "value": "x"}]}', r"conversations\[0\]: from: 'cat': unknown speaker"),
    ("sharegpt", '{"conversations": [{"from": "human"}]}', r"line 1: conversations\[0\]: value: missing"),
    ("sharegpt", '{"conversations": [{"from": "human", "value": 3}]}', r"conversations\[0\]: value: int: must be a text"),
    ("sharegpt", '{"conversations": "x"}', r"line 1: conversations: 'x': must be a list of objects"),
    ("sharegpt", '[{"conversations": []}', r"record 1: .*truncated|record 1: no answered prompt"),
    ("sharegpt", '[{"conversations": []} {}]', r"record 1"),
    ("sharegpt", "[3]", r"record 1: 3: must be a JSON object"),
    ("sharegpt", "[] x", r"record 1: text after the end of the array"),
    ("openai", '{"messages": [{"role": "cat", "content": "x"}]}', r"line 1: messages\[0\]: role: 'cat': unknown role; there are"),
    ("openai", '{"messages": [{"role": "user", "content": 5}]}', r"messages\[0\]: content: int: must be a text"),
    ("openai", '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', r"tool_calls\[0\]: function: missing"),
]  # fmt: skip


@pytest.mark.parametrize(("format_name", "text", "match"), DAMAGES)
def test_a_damage_is_named(format_name: str, text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=match) as caught:
        import_trace(path, format_name, ImportOptions(chars_per_token=4.0))
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).removeprefix(str(path))) < 400


def test_an_array_that_ends_within_a_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(
        '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {"conv', encoding="utf-8"
    )
    with pytest.raises(SpecError, match=r"record 2: not valid JSON: .*; is the file truncated"):
        import_trace(path, "sharegpt", ImportOptions(chars_per_token=4.0))
    path.write_text('[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}', encoding="utf-8")
    with pytest.raises(SpecError, match=r"record 1: no ',' or '\]' after the entry; is the file truncated"):
        import_trace(path, "sharegpt", ImportOptions(chars_per_token=4.0))


@pytest.mark.parametrize("format_name", ["azure", "mooncake"])
def test_bytes_that_are_no_text_are_named(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_bytes((AZURE if format_name == "azure" else MOONCAKE).encode() + b"\xff\xfe\x00\n")
    with pytest.raises(SpecError, match=r"line \d: not UTF-8 text"):
        import_trace(path, format_name)
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(SpecError, match=r"not UTF-8 text"):
        import_trace(path, "sharegpt", ImportOptions(chars_per_token=4.0))


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    for name in ("azure", "mooncake"):
        with pytest.raises(SpecError, match=r"cannot be read: Is a directory"):
            import_trace(tmp_path, name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    format_name=st.sampled_from(sorted(set(FORMATS) - {"parquet", "servegen"})),
    sample=st.sampled_from([AZURE, BURSTGPT + "5,x,1,2,3,y\n", CONSERVE, MOONCAKE, '{"messages": [{"role": "user"}]}']),
    cuts=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=4)), max_size=3),
)  # fmt: skip
def test_no_garbage_ends_in_a_traceback(format_name: str, sample: str, cuts: list[tuple[int, bytes]], tmp_path: Path) -> None:
    content = sample.encode()
    for place, noise in cuts:
        content = content[:place] + noise + content[place + len(noise) :]
    path = tmp_path / "trace.txt"
    path.write_bytes(content)
    for name in (format_name, None):
        with suppress(SpecError):
            assert import_trace(path, name, ImportOptions(chars_per_token=4.0)).num_conversations > 0
