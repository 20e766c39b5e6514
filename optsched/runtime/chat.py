"""Answer real conversations: text in, text out, through the same plan, workers and policies as any workload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.runtime.chat_tokens import ChatTokens, Message
from optsched.runtime.cluster import PATIENCE_S, Progress, run_plan
from optsched.runtime.model.gguf_file import SUFFIX

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Chat:
    """What a user says in one conversation: messages by turn (the first may come with a system message)."""

    turns: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of conversations.

    Attributes
    ----------
    answers
        Text of each answer, by conversation and turn.
    prompts, outputs
        Token ids of each turn.
    workload, log
        The conversations as they turned out, and what happened.
    """

    answers: tuple[tuple[str, ...], ...]
    prompts: tuple[Int64[Array, " p"], ...]
    outputs: tuple[Int64[Array, " o"], ...]
    workload: Workload
    log: ExecutionLog


def read_chats(path: Path | str) -> list[Chat]:
    """Read conversations, one JSON object per line: ``{"messages": [{"role": "user", "content": "..."}, ...]}``.

    Messages of the assistant are left out: it answers anew.

    Raises
    ------
    SpecError
        If a line is no such object, or has no message of a user.
    """
    chats = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot be read: {error}", file=path) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in json.loads(line)["messages"]]
            except (ValueError, KeyError, TypeError) as error:
                raise SpecError(f'line {number}: not {{"messages": [{{"role": ..., "content": ...}}]}}', file=path) from error
            chats.append(_chat(messages, number, path))
    if not chats:
        raise SpecError("holds no conversation; give one JSON object per line", file=path)
    return chats


def _chat(messages: Sequence[Message], number: int, path: Path | str) -> Chat:
    turns: list[tuple[Message, ...]] = []
    ahead: list[Message] = []
    for message in messages:
        if message["role"] == "user":
            turns.append((*ahead, message))
            ahead = []
        elif message["role"] != "assistant":
            ahead.append(message)
    if not turns or ahead:
        raise SpecError(f"line {number}: must end with a message of the user, or one that is answered", file=path)
    return Chat(tuple(turns))


class ChatPrompts:
    """Prompts of chats, each known as soon as the answer before it is.

    Parameters
    ----------
    chats, tokens
        What is said, and in which tokens.
    """

    drawn = False

    def __init__(self, chats: Sequence[Chat], tokens: ChatTokens) -> None:
        self._chats, self._tokens = chats, tokens
        self.known: dict[tuple[int, int], Int64[Array, " n"]] = {}

    def of(self, conversation: int, turn: int, count: int, before: Int64[Array, " o"]) -> Int64[Array, " n"]:
        """Return the prompt of one turn, given the answer before it."""
        if (conversation, turn) not in self.known:
            said = [message for each in self._chats[conversation].turns[: turn + 1] for message in each]
            stopped = bool(len(before)) and int(before[-1]) == self._tokens.stop
            self.known[conversation, turn] = self._tokens.following(said, stopped) if turn else self._tokens.opening(said)
        return self.known[conversation, turn]


def answer(
    plan: Plan,
    chats: Sequence[Chat],
    *,
    answer_tokens: int = 64,
    device: str = "cpu",
    time_limit_s: float = 3600.0,
    patience_s: float = PATIENCE_S,
    double: bool = False,
    progress: Progress | None = None,
) -> Answered:
    """Let a plan's workers answer conversations greedily; all arrive at once.

    Parameters
    ----------
    plan
        Its llm's weights must be a GGUF file with a tokenizer and a chat template.
    chats
        The conversations.
    answer_tokens
        Tokens after which an answer is cut.
    device, time_limit_s, patience_s, progress
        As of `optsched.runtime.cluster.execute`.
    double
        Compute in float64.

    Raises
    ------
    SpecError
        If the plan names no such file.
    WorkerError
        As of `optsched.runtime.cluster.execute`, which see also for other errors.
    """
    path = plan.llms[0].weights
    if path is None or not path.endswith(SUFFIX):
        raise SpecError(f"{path}: text needs a {SUFFIX} file with a tokenizer; name one with --weights", field="llms[0].weights")
    tokens = ChatTokens(path)
    prompts = ChatPrompts(chats, tokens)
    longest = _workload(chats, prompts, answer_tokens)
    stops = (tokens.stop,)
    log, observed = run_plan(
        plan, longest, device=device, time_limit_s=time_limit_s, patience_s=patience_s, progress=progress, prompts=prompts,
        stops=stops, double=double,
    )  # fmt: skip
    outputs = [observed.outputs(turn) for turn in range(longest.num_turns)]
    asked = [
        prompts.known[int(c), int(n)] for c, n in zip(longest.conversation_of_turn, longest.turn_in_conversation, strict=True)
    ]
    done = replace(longest, new_tokens=np.array([len(p) for p in asked]), output_tokens=np.array([len(o) for o in outputs]))
    answers = tuple(tuple(tokens.decode(outputs[turn]) for turn in turns) for turns in longest)
    return Answered(answers, tuple(asked), tuple(outputs), done, log)


def _workload(chats: Sequence[Chat], prompts: ChatPrompts, answer_tokens: int) -> Workload:
    """Return the conversations as they are if every answer is cut."""
    sizes = [len(chat.turns) for chat in chats]
    nothing = np.zeros(0, np.int64)
    new = [len(prompts.of(c, turn, 0, nothing)) for c, size in enumerate(sizes) for turn in range(size)]
    prompts.known = {key: tokens for key, tokens in prompts.known.items() if key[1] == 0}
    turns = sum(sizes)
    return Workload(
        np.arange(len(chats)), np.zeros(len(chats)), np.concatenate([[0], np.cumsum(sizes)]), np.array(new),
        np.full(turns, answer_tokens), np.zeros(turns),
    )  # fmt: skip
