"""One row or object of a trace, whose values are checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optsched.errors import SpecError

MAX_COUNT = 2**31 - 1
MAX_ID = 2**63 - 1


@dataclass(slots=True)
class Record:
    """One row or object of a file, and where it stands.

    Attributes
    ----------
    file
        The file it was read from.
    place
        ``line 17``, or ``record 17`` in a file that is one JSON array.
    values
        Its values by column or key.
    """

    file: Path
    place: str
    values: Mapping[str, object]

    def error(self, field: str | None, reason: str) -> SpecError:
        """Return the error that names this record's file, place and field."""
        return SpecError(reason, file=self.file, field=self.place if field is None else f"{self.place}: {field}")

    def get(self, field: str) -> object:
        """Return a value.

        Raises
        ------
        SpecError
            If the record lacks it.
        """
        if field not in self.values:
            raise self.error(field, "missing; add it, or choose another --format")
        return self.values[field]

    def integer(self, field: str, minimum: int = 0, maximum: int = MAX_COUNT, knob: str = "fix the record") -> int:
        """Return a whole number within its limits.

        Raises
        ------
        SpecError
            If it is none, or out of its range.
        """
        return self._whole(field, self.get(field), minimum, maximum, knob)

    def integers(self, field: str) -> list[int]:
        """Return a list of non-negative whole numbers.

        Raises
        ------
        SpecError
            If it is no list, or an entry is no such number.
        """
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(field, f"{short(value)}: must be a list of whole numbers")
        return [self._whole(f"{field}[{index}]", item, 0, MAX_ID, "fix the record") for index, item in enumerate(value)]

    def _whole(self, field: str, value: object, minimum: int, maximum: int, knob: str) -> int:
        number: int | None = None
        if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() and len(value) <= 20:
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        if number is None:
            raise self.error(field, f"{short(value)}: must be a whole number; {knob}")
        if number < minimum:
            raise self.error(field, f"{number}: must be at least {minimum}; {knob}")
        if number > maximum:
            raise self.error(field, f"{number}: must be at most {maximum}; {knob}")
        return number

    def number(self, field: str, minimum: float | None = None) -> float:
        """Return a finite number.

        Raises
        ------
        SpecError
            If it is none, or below `minimum`.
        """
        value = self.get(field)
        number = math.nan
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise self.error(field, f"{short(value)}: must be a finite number; fix the record")
        if minimum is not None and number < minimum:
            raise self.error(field, f"{number:g}: must be at least {minimum:g}; fix the record")
        return number

    def objects(self, field: str) -> list[Record]:
        """Return a list of objects as records of their own.

        Raises
        ------
        SpecError
            If it is no list of objects.
        """
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(field, f"{short(value)}: must be a list of objects")
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.error(f"{field}[{index}]", f"{short(item)}: must be an object")
        return [Record(self.file, f"{self.place}: {field}[{index}]", item) for index, item in enumerate(value)]


def short(value: object) -> str:
    """Return a value as it would be written, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
