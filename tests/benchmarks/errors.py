"""What docs/accuracy.md says of predicted and measured times: a row of figures, and a scatter plot."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

LAUNCH_S = 20e-6  # below it a kernel's launch is most of its time
HEADER = ["rows", "MAPE", "median", "bias", "worst decile"]
MOST_POINTS = 1500  # of a group in a plot


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; columns of figures are set to the right."""
    rule = ["---:" if cell[0] in "+-0123456789" else "---" for cell in rows[0]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def fill(path: Path, tables: Mapping[str, str], command: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` by tables, with command and date.

    Raises
    ------
    ValueError
        If the file lacks the markers of a table.
    """
    text = path.read_text(encoding="utf-8")
    stamp = f"`{command}`, {datetime.datetime.now(datetime.UTC).date().isoformat()}"
    for name, table in tables.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- end of {name} -->")
        if not closing:
            raise ValueError(f"{path} has no markers <!-- {name} --> and <!-- end of {name} -->; put them where the table goes")
        text = f"{before}<!-- {name} -->\n{stamp}\n\n{table}\n{closing}{after}"
    path.write_text(text, encoding="utf-8")


def figures(predicted_s: Float64[np.ndarray, " N"], measured_s: Float64[np.ndarray, " N"]) -> list[str]:
    """Return the cells under `HEADER`: mean and median absolute error, mean signed error, and the 90th percentile."""
    if not len(measured_s):
        return ["0", "-", "-", "-", "-"]
    error = predicted_s / measured_s - 1
    size = np.abs(error)
    shares = [f"{100 * size.mean():.1f} %", f"{100 * np.median(size):.1f} %", f"{100 * error.mean():+.1f} %"]
    return [f"{len(error):,}", *shares, f"{100 * np.quantile(size, 0.9):.1f} %"]


def mape(predicted_s: Float64[np.ndarray, " N"], measured_s: Float64[np.ndarray, " N"]) -> str:
    """Return the mean absolute relative error as a cell."""
    return f"{100 * np.abs(predicted_s / measured_s - 1).mean():.1f} %" if len(measured_s) else "-"


def scatter(path: Path, title: str, groups: Mapping[str, tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]]) -> None:
    """Draw predicted over measured times; at most `MOST_POINTS` of each group, drawn with a fixed seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "optsched"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 5.0))
    random = np.random.default_rng(0)
    for name, (predicted_s, measured_s) in groups.items():
        chosen = random.permutation(len(measured_s))[:MOST_POINTS]
        # Thousands of vector markers would make a heavy page.
        axes.loglog(measured_s[chosen], predicted_s[chosen], ".", markersize=2.5, alpha=0.5, label=name, rasterized=True)
    low = min(float(measured.min()) for _, measured in groups.values())
    high = max(float(measured.max()) for _, measured in groups.values())
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    for factor in (0.9, 1.1):
        axes.plot([low, high], [factor * low, factor * high], color="black", linewidth=0.5, linestyle=":")
    axes.set(title=title, xlabel="measured (s)", ylabel="predicted (s)")
    axes.legend(markerscale=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def parts(
    divided: Mapping[str, Bool[np.ndarray, " N"]], measured_s: Float64[np.ndarray, " N"]
) -> dict[str, Bool[np.ndarray, " N"]]:
    """Return the masks of each part of a split, launch-bound rows apart."""
    small = measured_s < LAUNCH_S
    found = {name: mask & ~small for name, mask in divided.items()}
    return {**found, "held-out shapes below 20 us": divided["held-out shapes"] & small}
