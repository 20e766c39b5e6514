"""Write the section on matrix products of docs/accuracy.md and its figures: ``python tests/benchmarks/accuracy_gemm.py``.

Needs what `calibrate_gemm` needs. Every gpu file's laws are judged as they stand in the repository.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import numpy as np
from calibrate_gemm import LAYERS, SWEEPS, layers, sweeps
from errors import HEADER, LAUNCH_S, figures, mape, parts, scatter
from jaxtyping import Bool, Float64

from optsched import catalog
from optsched.cost.elementwise import ElementwiseParameters, elementwise_s
from optsched.cost.gemm_calibration import card_of, gemm_seconds, gemm_split
from optsched.cost.gemm_tables import as_fitted, datasheet_s, peak_of, read_layers
from optsched.cost.precision import double_precision, scalar
from optsched.domain.hardware import Gpu
from optsched.profiles.aiconfigurator_gemm import FORMATS, formats_of, read_gemms
from optsched.profiles.gemms import GemmRows, PassRows
from optsched.profiles.rows import joined

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"M 1-16": (1, 16), "M 17-256": (17, 256), "M 257-2048": (257, 2048), "M above 2048": (2049, 1 << 30)}
Figures = dict[str, tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]]


def predicted(gpu: Gpu, rows: GemmRows) -> Float64[np.ndarray, " N"]:
    """Return what a gpu's shipped law says of measured products, whose weights the benchmark repeats."""
    law = gpu.efficiency.gemm[rows.dtype]
    return gemm_seconds(law, card_of(gpu.datasheet, peak_of(gpu, rows.dtype)), rows)


def divided(rows: GemmRows) -> dict[str, Bool[np.ndarray, " N"]]:
    """Return the parts of a sweep: as split, launch-bound rows apart, and held-out rows by M."""
    given = gemm_split(rows)
    masks = {"training": given.train, "held-out shapes": given.heldout_shapes, "held-out llms": given.heldout_llms}
    found = parts(masks, rows.seconds)
    held = ~given.train & (rows.seconds >= LAUNCH_S)
    by_rows = {name: held & (rows.rows >= low) & (rows.rows <= high) for name, (low, high) in ROWS.items()}
    return {**found, **{f"held out, {name}": mask for name, mask in by_rows.items()}}


def odd_figures(gpu: Gpu, rows: GemmRows) -> list[str]:
    """Return the figures of held-out shapes among rows of which none was left out for its time."""
    mask = gemm_split(rows).heldout_shapes & (rows.seconds >= LAUNCH_S)
    times, measured = predicted(gpu, rows)[mask], rows.seconds[mask]
    return [*figures(times, measured), mape(datasheet_s(gpu, rows)[mask], measured)]


def sweep_tables(tables: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of the table of sweeps and of the table of rows left out; draw a figure per gpu."""
    found, left_out = [], []
    for name in SWEEPS:
        gpu, drawn = catalog.gpu(name), Figures()
        for path in sweeps(name, tables):
            for dtype in (each for each in FORMATS if each in formats_of(path) and each not in drawn):
                rows = read_gemms(path, dtype)
                times, floor = predicted(gpu, rows), datasheet_s(gpu, rows)
                drawn[dtype] = (times, rows.seconds)
                for part, mask in divided(rows).items():
                    cells = figures(times[mask], rows.seconds[mask])
                    found.append([name, dtype, part, *cells, mape(floor[mask], rows.seconds[mask])])
                found.append([name, dtype, "held-out shapes, odd rows too", *odd_figures(gpu, read_gemms(path, dtype, odd=True))])
                left_out += [[name, dtype, reason, f"{count:,}"] for reason, count in rows.left_out.items()]
        scatter(ROOT / "docs" / "accuracy" / f"gemm-{name}.svg", f"matrix products, {name}", drawn)
    return found, left_out


@double_precision
def pass_seconds(gpu: Gpu, rows: PassRows) -> Float64[np.ndarray, " N"]:
    """Return what a gpu's shipped law says of measured memory passes."""
    law, card = gpu.efficiency.elementwise, card_of(gpu.datasheet, peak_of(gpu, "fp16"))
    return np.asarray(elementwise_s(ElementwiseParameters.of(law), card, scalar(1.0), rows.moved_bytes))


def layer_tables(data: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of the tables of named llms: their products, none of which was fitted to, and their memory passes."""
    products, passes = [], []
    for name in LAYERS:
        gpu, found = catalog.gpu(name), []
        for path in layers(name, data):
            rows, some = read_layers(path)
            rows = as_fitted(rows)
            found.append(some)
            large = rows.seconds >= LAUNCH_S
            times, floor = predicted(gpu, rows), datasheet_s(gpu, rows)
            cells = [*figures(times[large], rows.seconds[large]), mape(floor[large], rows.seconds[large])]
            products.append([name, "/".join(path.parts[-3:-1]), *cells])
        every = joined(found)
        times = pass_seconds(gpu, every)
        for kernel in dict.fromkeys(every.kernel.tolist()):
            mask = every.kernel == kernel
            passes.append([name, kernel, *figures(times[mask], every.seconds[mask])])
    return products, passes


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def section(tables: Path, data: Path) -> str:
    """Return the text between the markers."""
    found, left_out = sweep_tables(tables)
    products, passes = layer_tables(data)
    stamp = f"`python tests/benchmarks/accuracy_gemm.py`, {datetime.datetime.now(datetime.UTC).date().isoformat()}"
    pictures = " ".join(f"![{name}](accuracy/gemm-{name}.svg)" for name in SWEEPS)
    plain = "datasheet, same rows"
    return "\n\n".join(
        [
            stamp,
            "Sweeps over shapes; rows of 20 us and more unless said otherwise:",
            table(["tier", "weights", "part", *HEADER, plain], found),
            pictures,
            "Layers of named llms as other teams measured them, none of which was fitted to, 20 us and more:",
            table(["tier", "table", *HEADER, plain], products),
            "Memory passes (fitted to these tables, a fifth of the sizes held out):",
            table(["tier", "kernel", *HEADER], passes),
            "Rows left out:",
            table(["tier", "weights", "reason", "rows"], left_out),
        ]
    )


def main() -> None:
    """Replace what stands between the markers of docs/accuracy.md."""
    path = ROOT / "docs" / "accuracy.md"
    written = section(Path(os.environ["OPTSCHED_AICONFIGURATOR"]), Path(os.environ["OPTSCHED_DATA"]))
    before, opening, rest = path.read_text(encoding="utf-8").partition("<!-- gemm -->\n")
    _, closing, after = rest.partition("<!-- end of gemm -->")
    if not closing:
        raise ValueError(f"{path} has no markers <!-- gemm --> and <!-- end of gemm -->; put them where the section goes")
    path.write_text(f"{before}{opening}{written}\n{closing}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
