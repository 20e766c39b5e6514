"""Rules on option values that several commands share."""

from __future__ import annotations

import math

from optsched.errors import SpecError


def positive(option: str, value: float | None) -> float | None:
    """Return a value that must be positive and finite, if it is given at all.

    Raises
    ------
    SpecError
        If it is not.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise SpecError(f"{value:g}: must be a positive, finite number", field=option)
    return value
