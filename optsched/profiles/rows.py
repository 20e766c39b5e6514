"""What all kinds of measurements share: columns of one length, a source, and counts of what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from optsched.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRows:
    """Measurements; every array of a kind of them is a column.

    Attributes
    ----------
    seconds
        Duration.
    source
        Where the rows were published.
    left_out
        Rows of the files that are not here, by the reason.
    """

    seconds: Float64[np.ndarray, " N"]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.seconds)

    def where(self, chosen: Bool[np.ndarray, " N"], reason: str | None = None) -> Self:
        """Return the chosen rows; with a reason, the others are counted as left out for it."""
        dropped = int(np.sum(~chosen))
        left_out = {**self.left_out, reason: self.left_out.get(reason, 0) + dropped} if reason and dropped else self.left_out
        return replace(self, **{name: column[chosen] for name, column in self.columns().items()}, left_out=left_out)

    def columns(self) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Return the columns by their names."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


Kind = TypeVar("Kind", bound=MeasuredRows)


def joined(parts: Sequence[Kind]) -> Kind:
    """Return the rows of several sources as one: sources are named, rows left out for one reason added.

    Raises
    ------
    SpecError
        If there is no part.
    """
    if not parts:
        raise SpecError("no measurements to join; give at least one table")
    left_out: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].columns()}
    return replace(parts[0], **columns, source="; ".join(dict.fromkeys(part.source for part in parts)), left_out=left_out)
