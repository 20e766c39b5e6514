"""Colours of a drawing: fixed ones for a file of its own, the page's for a part of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Palette:
    """CSS colours by what they show."""

    background: str = "#ffffff"
    text: str = "#24292f"
    grid: str = "#e4e8ec"
    edge: str = "#8b949e"
    prefill: str = "#d9772b"
    transfer: str = "#7d3c98"
    decode: str = "#3f7fbf"
    idle: str = "#a3adb8"
    full: str = "#9ecfb0"
    full_edge: str = "#3d8a5a"


PAPER = Palette()
PAGE = Palette(
    background="none", text="var(--text)", grid="var(--grid)", edge="var(--faint)", prefill="var(--prefill)",
    transfer="var(--transfer)", decode="var(--decode)", idle="var(--idle)", full="var(--cache)", full_edge="var(--cache-edge)",
)  # fmt: skip
