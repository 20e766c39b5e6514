"""Round numbers to mark on an axis."""

from __future__ import annotations

from math import ceil, floor, log10


def step_of(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that divides a span into at most `most` parts."""
    raw = span / most
    power = 10.0 ** floor(log10(raw))
    return float(power * next(m for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-12)))


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return the multiples of a round step within an interval."""
    if not high > low:
        return [low]
    step = step_of(high - low, most)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return powers of ten within an interval, with 2 and 5 times them where there is room."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    found: list[float] = []
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in multiples if low * (1 - 1e-9) <= m * 10.0**d <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: ceil(len(found) / most)]
