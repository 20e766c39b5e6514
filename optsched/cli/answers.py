"""``optsched run --chat``: answer the conversations of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optsched.cli.output import emit_json, print_line, progress, warn

if TYPE_CHECKING:
    from optsched.domain.plan import Plan
    from optsched.runtime.chat import Answered, Chat


def answer_file(
    plan: Plan, path: Path, answer_tokens: int, device: str, limit_s: float, patience_s: float, log: Path | None, *, json: bool
) -> None:
    """Answer conversations and print them, with what was observed.

    Parameters
    ----------
    plan, path
        Who answers, and what.
    answer_tokens, device, limit_s, patience_s, log, json
        The options of ``optsched run``.

    Raises
    ------
    SpecError
        If the file or the weights cannot be used so.
    """
    from optsched import logfile
    from optsched.cli.checks import positive
    from optsched.domain.accounting import measure_plan
    from optsched.runtime.chat import answer, read_chats

    positive("--answer-tokens", answer_tokens)
    chats = read_chats(path)
    with progress("starting workers", total=sum(len(chat.turns) for chat in chats)) as advance:
        found = answer(
            plan, chats, answer_tokens=answer_tokens, device=device, time_limit_s=limit_s, patience_s=patience_s, progress=advance
        )
    if log is not None:
        logfile.save_log(found.log, found.workload, log, plan)
        warn(f"Log written to {log}")
    observed = measure_plan(plan, found.log, found.workload, plan.predicted.clock)
    if json:
        recovered = len({event.conversation for event in found.log.events if event.kind == "recovered"})
        emit_json(
            {
                "conversations": [{"messages": _messages(chat, texts)} for chat, texts in zip(chats, found.answers, strict=True)],
                "observed": observed.model_dump(mode="json"),
                "recovered_conversations": recovered,
            }
        )
        return
    _print(chats, found)


def _messages(chat: Chat, answers: tuple[str, ...]) -> list[dict[str, str]]:
    said: list[dict[str, str]] = []
    for turn, text in zip(chat.turns, answers, strict=True):
        said += [*turn, {"role": "assistant", "content": text}]
    return said


def _print(chats: list[Chat], found: Answered) -> None:
    for number, (chat, answers) in enumerate(zip(chats, found.answers, strict=True)):
        print_line(f"--- conversation {number}")
        for message in _messages(chat, answers):
            print_line(f"{message['role']}: {message['content']}")
    tokens, moved = int(found.workload.output_tokens.sum()), len(found.log.transfers.start_s)
    print_line(f"--- {tokens:,} tokens in {found.log.makespan_s:.3g} s, {found.log.iterations:,} steps, {moved:,} transfers")
