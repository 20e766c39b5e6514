"""Count the tokens of texts, with a tokenizer or by an explicit estimate, and split dialogues into turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from optsched.errors import MissingExtraError, SpecError
from optsched.traces.options import ImportOptions

TokenCounter = Callable[[str], int]

_MODEL_ROLES = frozenset({"assistant", "gpt", "chatgpt", "bing", "bard", "model", "function_call"})
_OTHER_ROLES = frozenset({"user", "human", "system", "developer", "tool", "function", "observation"})
ROLES = tuple(sorted(_MODEL_ROLES | _OTHER_ROLES))


def token_counter(options: ImportOptions, file: Path) -> TokenCounter:
    """Return the function that counts a text's tokens; a chat template's own tokens are not counted.

    Parameters
    ----------
    options
        With a tokenizer file or a number of characters per token.
    file
        The trace, named in errors.

    Raises
    ------
    SpecError
        If neither is given, or the tokenizer file is none.
    MissingExtraError
        If the tokenizers package is not installed.
    """
    if options.chars_per_token is not None:
        per_token = options.chars_per_token
        return lambda text: math.ceil(len(text) / per_token)
    if options.tokenizer is None:
        raise SpecError(
            "holds texts, not token counts; give --tokenizer TOKENIZER.json to count them, or --chars-per-token 4 to estimate",
            file=file,
        )
    if not options.tokenizer.is_file():
        raise SpecError("no such file; give the tokenizer.json of the llm to be served", file=options.tokenizer)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("Counting tokens with a tokenizer", "runtime") from error
    try:
        tokenizer = Tokenizer.from_file(str(options.tokenizer))
    except Exception as error:  # the package raises bare Exception on any damage
        raise SpecError(f"not a tokenizer.json: {error}", file=options.tokenizer) from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def is_known_role(role: object) -> bool:
    """Whether a role of a message is one that dialogues use."""
    return isinstance(role, str) and role.lower() in ROLES


def dialogue_turns(messages: Iterable[tuple[str, str]], count: TokenCounter) -> list[tuple[int, int]]:
    """Return the new and output tokens of each answered turn.

    Everything that the llm did not write since its last answer is what a turn appends; answers in a row are one answer;
    what comes before the first prompt is part of it, and prompts without an answer are left out.

    Parameters
    ----------
    messages
        Role and text of each message, in order.
    count
        Counts a text's tokens.
    """
    turns: list[tuple[int, int]] = []
    new, output, asked = 0, 0, False
    for role, text in messages:
        written = role.lower() in _MODEL_ROLES
        if written and asked:
            output += count(text)
            continue
        if output:
            turns.append((new, output))
            new, output = 0, 0
        new += count(text)
        asked = asked or not written
    if output:
        turns.append((new, output))
    return turns
