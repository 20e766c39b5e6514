"""Write the section on attention of docs/accuracy.md and its figures: ``python tests/benchmarks/accuracy_attention.py``.

Needs what `calibrate_attention` needs. Every gpu file's laws are judged as they stand in the repository.
"""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from calibrate_attention import SYSTEMS, files

from optsched import catalog
from optsched.cost.attention_calibration import (
    ACTIVATION_BYTES,
    LAUNCH_BOUND_S,
    attention_shapes,
    attention_split,
    predict_decode,
    predict_prefill,
)
from optsched.cost.attention_tables import read_tables
from optsched.cost.decode_attention import DecodeAttentionParameters, decode_attention_bytes, decode_attention_flops
from optsched.cost.precision import double_precision
from optsched.cost.prefill_attention import PrefillAttentionParameters, prefill_attention_bytes, prefill_attention_flops
from optsched.domain.hardware import Gpu
from optsched.profiles import frontier_attention
from optsched.profiles.attention import AttentionRows

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "optsched"
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    "prefill_attention": "prefill",
    "decode_attention": "decode",
    "latent_prefill_attention": "prefill, MLA",
    "latent_decode_attention": "decode, MLA",
}
HEADER = [
    "gpu", "kernel", "cache", "rows", "fitted", "held-out shapes", "held-out llms", "cached context", "window", "< 20 us", "datasheet",
]  # fmt: skip
POINTS = 500


@double_precision
def predictions(gpu: Gpu, law: str, cache: str, rows: AttentionRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the times that the gpu's law and the roofline of its datasheet predict."""
    peak, bandwidth = gpu.datasheet.flops_per_s["bf16"], gpu.datasheet.memory_bytes_per_s
    s = attention_shapes(rows, peak, bandwidth)
    record = getattr(gpu.efficiency, law)[cache]
    widths = (s["heads"], s["key_dim"], s["value_dim"], s["cache_width"], s["cache_bytes"], ACTIVATION_BYTES)
    if "prefill" in law:
        seconds = predict_prefill(PrefillAttentionParameters.of(record), s)
        flops = prefill_attention_flops(s["pairs"], s["heads"], s["key_dim"], s["value_dim"])
        moved = prefill_attention_bytes(s["tokens"], s["context_tokens"], *widths)
    else:
        seconds = predict_decode(DecodeAttentionParameters.of(record), s)
        flops = decode_attention_flops(s["context_tokens"], s["heads"], s["key_dim"], s["value_dim"])
        moved = decode_attention_bytes(s["sequences"], s["context_tokens"], *widths)
    return np.asarray(seconds), np.maximum(flops / peak, moved / bandwidth)


def summary(ratio: np.ndarray, chosen: np.ndarray) -> str:
    """Return MAPE (median, bias, worst tenth) of some rows in percent."""
    if not chosen.any():
        return "-"
    error = np.sort(np.abs(ratio[chosen] - 1)) * 100
    worst = error[-max(1, len(error) // 10) :].mean()
    return f"{error.mean():.1f} ({np.median(error):.1f}, {100 * (ratio[chosen].mean() - 1):+.1f}, {worst:.0f})"


def row(name: str, law: str, cache: str, rows: AttentionRows, ratio: np.ndarray, roofline: np.ndarray) -> list[str]:
    """Return a line of the table."""
    chosen, long = attention_split(rows), rows.seconds >= LAUNCH_BOUND_S
    limited, context = np.isfinite(rows.window), (rows.new_tokens > 1) & (rows.context > 0)
    plain = long & ~limited & ~context
    sets = (
        plain & chosen.train, plain & chosen.heldout_shapes, plain & chosen.heldout_llms, long & context, long & limited, ~long & ~limited,
    )  # fmt: skip
    figures = [summary(ratio, each) for each in sets]
    return [name, TITLES[law], cache, f"{len(rows):,}", *figures, summary(roofline, plain)]


def figure(name: str, points: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw predicted over measured times of a gpu, a sample of the rows of each law."""
    drawn, axes = plt.subplots(figsize=(5, 4))
    for label, (measured, predicted) in points.items():
        sample = np.random.default_rng(0).permutation(len(measured))[: POINTS // len(points)]
        axes.scatter(1e6 * measured[sample], predicted[sample] / measured[sample], s=2, label=label, rasterized=False)
    axes.set(xscale="log", yscale="log", ylim=(0.4, 2.5), xlabel="measured (us)", ylabel="predicted / measured", title=name)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.legend(fontsize=6, markerscale=3)
    path = ROOT / "docs" / "accuracy" / f"attention-{name}.svg"
    path.parent.mkdir(exist_ok=True)
    drawn.savefig(path, metadata={"Date": None})
    plt.close(drawn)


def section(tables: Path, data: Path) -> str:
    """Return the tables, and draw the figures on the way."""
    lines, left_out = [], []
    for name in SYSTEMS:
        gpu, points = catalog.gpu(name), {}
        for (law, cache), rows in sorted(read_tables(files(name, tables, data)).items(), reverse=True):
            predicted, roofline = predictions(gpu, law, cache, rows)
            lines.append(row(name, law, cache, rows, predicted / rows.seconds, roofline / rows.seconds))
            points[f"{TITLES[law]}, {cache}"] = (rows.seconds, predicted)
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in rows.left_out.items())
            left_out.append(f"- {name}, {TITLES[law]}, {cache}: {reasons or 'none'}.")
        figure(name, points)
    gpu = catalog.gpu("a100-80gb")
    file = data / "profiles" / "frontier" / "a800" / "Llama-2-7b-hf" / "attention.csv"
    for law, rows in zip(("prefill_attention", "decode_attention"), frontier_attention.read_attention(file), strict=True):
        predicted, roofline = predictions(gpu, law, "bf16", rows)
        lines.append(row("a800, FlashInfer", law, "bf16", rows, predicted / rows.seconds, roofline / rows.seconds))
    rule = ["---", "---", "---", *["---:"] * (len(HEADER) - 3)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, rule, *lines))
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"`python tests/benchmarks/accuracy_attention.py`, {day}\n\n{table}\n\nRows left out:\n\n" + "\n".join(left_out)


if __name__ == "__main__":
    text = section(Path(os.environ["OPTSCHED_AICONFIGURATOR"]), Path(os.environ["OPTSCHED_DATA"]))
    document = ROOT / "docs" / "accuracy.md"
    marks = ("<!-- attention -->\n", "\n<!-- end of attention -->")
    pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
    document.write_text(re.sub(pattern, lambda _: marks[0] + text + marks[1], document.read_text(), flags=re.DOTALL))
