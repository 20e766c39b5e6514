"""From messages to tokens and back: the tokenizer and the chat template that a GGUF file carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from optsched.errors import MissingExtraError, SpecError
from optsched.runtime.model.gguf_file import open_gguf, text_of

if TYPE_CHECKING:
    from gguf import GGUFReader
    from jinja2 import Template
    from tokenizers import Tokenizer

Array = np.ndarray
Message = dict[str, str]
_CONTROL = 3  # gguf.TokenType.CONTROL
_ANSWER = "\x00answer\x00"
_SPLIT_DIGITS = ("smollm",)  # pre-tokenizers that take every digit for itself before the byte level's rule
_PLAIN = ("gpt-2", "default")


class ChatTokens:
    """A file's tokenizer.

    Parameters
    ----------
    path
        A ``.gguf`` file with a byte-level BPE vocabulary and a chat template.

    Attributes
    ----------
    stop
        The token that ends an answer.

    Raises
    ------
    SpecError
        If the file carries no such tokenizer.
    MissingExtraError
        If gguf, tokenizers or jinja2 is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        reader = open_gguf(path)
        self._tokenizer = _tokenizer(reader, path)
        self._template = _template(reader, path)
        self.stop = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())

    def encode(self, text: str) -> Int64[Array, " n"]:
        """Return the tokens of a text; names of control tokens in it are those tokens."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, tokens: Int64[Array, " n"]) -> str:
        """Return the text of tokens, control tokens left out."""
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    def opening(self, messages: list[Message]) -> Int64[Array, " n"]:
        """Return the prompt of a conversation's first turn: its messages, and the header of the answer."""
        return self.encode(self._rendered(messages))

    def following(self, messages: list[Message], stopped: bool) -> Int64[Array, " n"]:
        """Return the prompt of a later turn: what the template puts between the answer before it and the next one.

        Parameters
        ----------
        messages
            All messages of the users (and the system) so far.
        stopped
            Whether the answer before put out the token that ends it.
        """
        before = [*messages[:-1], {"role": "assistant", "content": _ANSWER}, messages[-1]]
        tokens = self.encode(self._rendered(before).rpartition(_ANSWER)[2])
        return tokens[1:] if stopped and len(tokens) and tokens[0] == self.stop else tokens

    def _rendered(self, messages: list[Message]) -> str:
        return str(self._template.render(messages=messages, add_generation_prompt=True))


def _tokenizer(reader: GGUFReader, path: Path | str) -> Tokenizer:
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise MissingExtraError("Reading text", "runtime") from error
    kind, rule = text_of(reader, "tokenizer.ggml.model"), text_of(reader, "tokenizer.ggml.pre") or "default"
    if kind != "gpt2" or rule not in (*_SPLIT_DIGITS, *_PLAIN):
        raise SpecError(
            f"tokenizer {kind!r} with rule {rule!r}; the runtime reads 'gpt2' with {', '.join((*_SPLIT_DIGITS, *_PLAIN))}. "
            "Give prompts as a workload instead.", file=path,
        )  # fmt: skip
    tokens = list(reader.fields["tokenizer.ggml.tokens"].contents())
    merges = [tuple(merge.split(" ", 1)) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if rule in _SPLIT_DIGITS else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    control = [token for token, each in zip(tokens, kinds, strict=True) if each == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _template(reader: GGUFReader, path: Path | str) -> Template:
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("Chat templates", "runtime") from error
    text = text_of(reader, "tokenizer.chat_template")
    if text is None:
        raise SpecError("carries no chat template; use the file of an instruction-tuned model", file=path)
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
