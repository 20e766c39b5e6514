"""Plot."""

from pathlib import Path


def draw(folder: Path) -> None:
    """Draw."""
