"""Write the section on routed experts of docs/accuracy.md: ``python tests/benchmarks/accuracy_experts.py``.

The laws of models/gpus as they stand are held against what `calibrate_experts` fits them to.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from calibrate_experts import GPUS, experts_rows
from errors import HEADER, figures, fill, mape, markdown, parts, scatter
from jaxtyping import Float64

from optsched import catalog
from optsched.cost.experts import ExpertsParameters
from optsched.cost.experts_fit import experts_split, predicted_s, shapes
from optsched.cost.precision import double_precision, scalar
from optsched.cost.rates import peak_flops_per_s
from optsched.cost.roofline import Card
from optsched.domain.dtypes import DTYPE_BYTES
from optsched.domain.experts_law import ExpertsLaw
from optsched.profiles.experts import ExpertRows
from optsched.profiles.frontier_experts import read_experts as read_frontier

ROOT = Path(__file__).resolve().parents[2]
A800 = "a100-80gb"  # the same silicon
# What is left of the law without measurements: the larger of compute and reading the weights, at the datasheet's rates.
DATASHEET = ExpertsLaw(
    compute=1.0, memory=1.0, half_rows=1e-9, half_width=1e-9, order=20.0, passes=1e-9, launch_s=0.0, routing_s=0.0
)


@double_precision
def times(law: ExpertsLaw, name: str, rows: ExpertRows) -> Float64[np.ndarray, " N"]:
    """Return what a law predicts for a gpu's measured layers."""
    tier = catalog.tier(name)
    card = Card(scalar(peak_flops_per_s(tier, rows.dtype)), scalar(tier.gpu.datasheet.memory_bytes_per_s), scalar(1.0))
    return np.asarray(predicted_s(ExpertsParameters.of(law), card, shapes(rows), DTYPE_BYTES[rows.dtype]))


def tables() -> tuple[list[str], list[list[str]], list[list[str]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the table's header and rows, the rows left out, and what to plot."""
    table, left_out, plotted = [], [], {}
    for name, measured in GPUS.items():
        for dtype in measured.dtypes:
            rows = experts_rows(name, dtype)
            found, plain = times(catalog.gpu(name).efficiency.experts[dtype], name, rows), times(DATASHEET, name, rows)
            divided = experts_split(rows)
            masks = {"training": divided.train, "held-out shapes": divided.heldout_shapes, "held-out llm": divided.heldout_llms}
            for part, mask in parts(masks, rows.seconds).items():
                if mask.any():
                    cells = figures(found[mask], rows.seconds[mask])
                    table.append([name, dtype, part, *cells, mape(plain[mask], rows.seconds[mask])])
            left_out += [[name, dtype, reason, f"{count:,}"] for reason, count in rows.left_out.items()]
            if dtype == "bf16":
                plotted[name] = (found, rows.seconds)
    return ["tier", "weights", "part", *HEADER, "datasheet, same rows"], table, left_out, plotted


def frontier_table() -> str:
    """Return another team's layers on the A100's silicon, to which nothing was fitted, by how they are spread over GPUs."""
    path = Path(os.environ["OPTSCHED_DATA"]) / "profiles" / "frontier" / "a800" / "qwen3-a3b-30b-moe" / "moe.csv"
    rows = read_frontier(path)
    found, plain = times(catalog.gpu(A800).efficiency.experts["bf16"], A800, rows), times(DATASHEET, A800, rows)
    cells = []
    for tp, groups in sorted(set(zip(rows.tp.tolist(), rows.groups.tolist(), strict=True))):
        mask = (rows.tp == tp) & (rows.groups == groups)
        cells.append([f"{tp}", f"{groups}", *figures(found[mask], rows.seconds[mask]), mape(plain[mask], rows.seconds[mask])])
    return markdown(["tp", "expert groups", *HEADER, "datasheet, same rows"], cells)


def main() -> None:
    """Write the section's tables and its figure."""
    header, rows, left_out, plotted = tables()
    found = {
        "experts": markdown(header, rows),
        "experts-elsewhere": frontier_table(),
        "experts-left-out": markdown(["tier", "weights", "left out because", "rows"], left_out),
    }
    fill(ROOT / "docs" / "accuracy.md", found, "python tests/benchmarks/accuracy_experts.py")
    scatter(ROOT / "docs" / "accuracy" / "experts.svg", "routed experts, bf16", plotted)


if __name__ == "__main__":
    main()
