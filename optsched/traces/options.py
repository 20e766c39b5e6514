"""What an importer may be told besides the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optsched.errors import SpecError

Advance = Callable[[float], None]
"""Told the number of bytes of the file that have been read."""


def silent(done: float) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to read a trace; each field matters only to the formats named.

    Attributes
    ----------
    drop_empty
        Leave out requests without prompt or without output (failed ones) instead of refusing the file; all formats.
    tokenizer
        A Hugging Face ``tokenizer.json`` that counts the tokens of texts; ``sharegpt`` and ``openai``.
    chars_per_token
        Estimate token counts as characters over this number instead; the same formats.
    seed
        Seed of whatever is sampled; ``servegen``.
    window_s
        Start and end of the stretch of the day that is sampled; ``servegen``.
    rate_per_s
        Mean request rate over that stretch, None: as published; ``servegen``.
    """

    drop_empty: bool = False
    tokenizer: Path | None = None
    chars_per_token: float | None = None
    seed: int = 0
    window_s: tuple[float, float] = (0.0, 86400.0)
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        SpecError
            If a number is out of its range.
        """
        if self.chars_per_token is not None and not 0 < self.chars_per_token < float("inf"):
            raise SpecError(
                f"{self.chars_per_token!r} characters per token: must be positive; 4 is usual", field="chars_per_token"
            )
        if self.tokenizer is not None and self.chars_per_token is not None:
            raise SpecError("tokens are counted by a tokenizer or estimated from characters, not both; give one of the two")
        if self.seed < 0:
            raise SpecError(f"{self.seed}: must not be negative", field="seed")
        start, end = self.window_s
        if not 0 <= start < end < float("inf"):
            raise SpecError(f"{start:g}:{end:g}: must be two times in seconds, the second one later", field="window")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < float("inf"):
            raise SpecError(f"{self.rate_per_s!r}: must be a positive number of requests per second", field="rate")
