"""Figures of a results folder as PNG and SVG; the papers' ``figures.py`` say what is on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optsched.errors import MissingExtraError

from .tables import Tables, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(folder: Path, drawers: Mapping[str, Callable[[Tables], Figure | None]]) -> None:
    """Draw every figure that the tables of a folder allow, beside them.

    Parameters
    ----------
    folder
        Of the tables.
    drawers
        By name of the figure; they return None where the tables lack what is needed.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("drawing figures", "report") from error
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "optsched", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    tables = load(folder)
    for name, drawer in drawers.items():
        figure = drawer(tables)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            pyplot.close(figure)


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of some inches with a grid of axes, row by row."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes.flat)
