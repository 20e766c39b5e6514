"""Numbers as people read them: three digits or so, with the unit that fits."""

from __future__ import annotations

from math import floor, isfinite, log10

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds(value: float | None) -> str:
    """Write a duration: ``28.7 ms``, ``4.149 s``; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.4g} s"


def factor(value: float | None) -> str:
    """Write a multiple: ``2.4 x``."""
    return "-" if value is None else f"{value:.3g} x"


def share(value: float | None) -> str:
    """Write a share of the whole as percent; what is near nothing or all is not rounded to it."""
    if value is None or not isfinite(value):
        return "-"
    written = f"{100 * value:.1f}"
    if value > 0 and written == "0.0":
        return "< 0.1 %"
    if value < 1 and written == "100.0":
        return "> 99.9 %"
    return f"{written.removesuffix('.0')} %"


def change(value: float | None) -> str:
    """Write a relative difference with its sign: ``+12.3 %``."""
    return "-" if value is None or not isfinite(value) else f"{100 * value:+.1f} %"


def quantity(value: float | None, unit: str = "") -> str:
    """Write an amount with a decimal prefix: ``299 kJ``, ``1.2 kW``, ``42``."""
    if value is None or not isfinite(value):
        return "-"
    if unit in ("", "USD", "USD/h") and abs(value) < 1e4:
        return f"{plain(value)} {unit}".strip()
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip()


def plain(value: float) -> str:
    """Write a number with four digits at most and no exponent where it can be avoided."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    digits = 3 - floor(log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.6g}"
