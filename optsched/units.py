"""Read quantities written for people ("4.8 TB/s") into SI floats, and write them back."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_DEFINITIONS = ("FLOP = [operation] = flop = OP", "USD = [money] = usd", "token = [text]", "B = byte", "request = []")
_TARGETS = {"B": "byte", "B/s": "byte / second", "FLOP/s": "FLOP / second"}


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(cache_folder=None)
    for definition in _DEFINITIONS:
        registry.define(definition)
    return registry


# A number and a unit, nothing that a parser of expressions could be kept busy with.
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµμΩ°%][A-Za-zµμΩ°%_/* ]*)?\s*")


@lru_cache(maxsize=4096)
def _parse(text: str, unit: str) -> float:
    import pint

    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} cannot be read as a quantity; write a number and a unit like '1 {unit}'")
    number, written = found.groups()
    if written is None:
        raise ValueError(f"{text!r} has no unit; write it with one, for example '1 {unit}'")
    try:
        return float(_registry().Quantity(float(number), written.strip()).to(_TARGETS.get(unit, unit)).magnitude)
    except pint.errors.DimensionalityError as error:
        raise ValueError(f"{text!r} is not a quantity in {unit}; write it with a unit like '1 {unit}'") from error
    except Exception as error:  # pint raises errors of its tokenizer and of Python's on garbage
        raise ValueError(f"{text!r} cannot be read as a quantity; write a number and a unit like '1 {unit}'") from error


def parse_quantity(value: str | float, unit: str) -> float:
    """Read a quantity into the given unit.

    Parameters
    ----------
    value
        A string with a unit ("4.8 TB/s", "300 W"), or a bare number already in `unit`.
    unit
        ``B``, ``B/s``, ``FLOP/s``, ``W``, ``J``, ``s`` or any other unit pint knows.

    Returns
    -------
    float
        The magnitude in `unit`.

    Raises
    ------
    ValueError
        If the text is no quantity, has another dimension, or is NaN or infinite.

    Examples
    --------
    >>> parse_quantity("4.8 TB/s", "B/s")
    4800000000000.0
    """
    number = _parse(value, unit) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite quantity; write a number and a unit like '1 {unit}'")
    return number


def _reader(unit: str) -> BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, str):
            return parse_quantity(value, unit)
        return value

    return BeforeValidator(read)


Positive = Field(gt=0, allow_inf_nan=False)
NonNegative = Field(ge=0, allow_inf_nan=False)

Bytes = Annotated[float, _reader("B"), Positive]
BytesPerSecond = Annotated[float, _reader("B/s"), Positive]
FlopsPerSecond = Annotated[float, _reader("FLOP/s"), Positive]
Watts = Annotated[float, _reader("W"), Positive]
Seconds = Annotated[float, _reader("s"), NonNegative]

_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "u"),
    (1e-9, "n"),
)


def human(value: float, unit: str, digits: int = 3) -> str:
    """Write an SI value with a prefix for people, for example ``human(4.8e12, "B/s") == "4.8 TB/s"``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    scale, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0] * (1 - 1e-12)), _PREFIXES[-1])
    return f"{value / scale:.{digits}g} {prefix}{unit}"
