"""Published figures and the limits around them; the files that hold them and the experiment's settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from optsched import files
from optsched.domain.frozen import Frozen

Read = TypeVar("Read", bound=BaseModel)
Verdict = Literal["reproduced", "not reproduced", "not run"]


class Check(Frozen):
    """One figure: the published one where there is one, and the limits within which ours counts as reproduced."""

    name: str
    published: float | None = None
    low: float
    high: float

    def verdict(self, ours: float | None) -> Verdict:
        """Say whether our figure lies within the limits; None was not run."""
        if ours is None:
            return "not run"
        return "reproduced" if self.low - 1e-9 <= ours <= self.high + 1e-9 else "not reproduced"


class Claim(Frozen):
    """One claim, in words, with its checks; `kind` says whether ours is a prediction, a fit, or a control of our own."""

    id: str
    says: str
    source: str
    kind: Literal["predicted", "fitted", "ours"] = "predicted"
    checks: tuple[Check, ...]


def read_settings(
    model: type[Read], path: Path, smoke: bool, *, whole: Collection[str] = (), more: Mapping[str, str] | None = None
) -> Read:
    """Return the configuration; with `smoke`, the entries of its ``[smoke]`` replace those of the same names.

    Parameters
    ----------
    model
        What the file holds.
    path
        ``config.toml``.
    smoke
        Whether to cut the work.
    whole
        Tables that ``[smoke]`` replaces as a whole, not entry by entry.
    more
        Entries that the file does not have.

    Raises
    ------
    SpecError
        If the file is wrong.
    """
    data = files.read_toml(path)
    changes = data.pop("smoke", {})
    for name, value in changes.items() if smoke else ():
        data[name] = {**data[name], **value} if isinstance(value, dict) and name not in whole else value
    return files.validate(model, {**data, **(more or {})}, path)


def read_expected(model: type[Read], path: Path) -> Read:
    """Return the published figures.

    Raises
    ------
    SpecError
        If the file is wrong.
    """
    return files.validate(model, files.read_toml(path), path)
