"""Write the section on collectives of docs/accuracy.md: ``python tests/benchmarks/accuracy_collectives.py``.

The laws of models/links as they stand are held against what `calibrate_links` fits them to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from calibrate_links import LINKS, NETWORKS, link_rows, network_rows
from errors import HEADER, LAUNCH_S, figures, fill, mape, markdown, scatter
from jaxtyping import Float64

from optsched import catalog
from optsched.cost import collectives
from optsched.cost.collective_fit import GATHERS
from optsched.cost.collectives import CollectiveParameters, Fabric
from optsched.cost.precision import double_precision, scalar
from optsched.cost.split import split
from optsched.domain.collective_law import CollectiveLaw
from optsched.domain.hardware import Link
from optsched.profiles.collectives import CollectiveRows
from optsched.profiles.rows import joined

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("all_reduce", *GATHERS, "send")


@double_precision
def predicted_s(rows: CollectiveRows, link: Link, network: Link | None = None) -> Float64[np.ndarray, " N"]:
    """Return what the laws of a link (and of a network, for rows of several nodes) predict for measured collectives."""
    found = np.zeros(len(rows))
    far = network or link
    for kind, gpus, nodes in {(str(k), int(p), int(n)) for k, p, n in zip(rows.kind, rows.gpus, rows.nodes, strict=True)}:
        mask = (rows.kind == kind) & (rows.gpus == gpus) & (rows.nodes == nodes)
        within = gpus // nodes
        law = CollectiveParameters.of(link.collectives or CollectiveLaw(), far.collectives or CollectiveLaw(), gpus, within)
        fabric = Fabric(
            scalar(link.bytes_per_s), scalar(link.latency_s), scalar(far.bytes_per_s), scalar(far.latency_s),
            scalar(min(within, far.gpus_per_port)), scalar(within),
        )  # fmt: skip
        size = rows.num_bytes[mask]
        if kind == "send":
            times = collectives.hand_over_s(law, fabric, size, scalar(float(nodes > 1)))
        else:
            times = getattr(collectives, f"{kind}_s")(law, fabric, size, scalar(gpus))
        found[mask] = np.asarray(times)
    return found


def datasheet(link: Link) -> Link:
    """Return the link without measurements: its bandwidth, and the latency times the depth of a tree."""
    return link.replace(collectives=None)


def link_table() -> tuple[list[str], list[list[str]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the table of collectives within a node, and the all-reduces of each gpu for the plot."""
    table, plotted = [], {}
    for name, sources in LINKS.items():
        link = catalog.link(name)
        for source in sources:
            rows = joined(link_rows(source))
            found, plain, divided = predicted_s(rows, link), predicted_s(rows, datasheet(link)), split(rows.keys())
            for kind in KINDS:
                ours = rows.kind == kind
                if not ours.any():
                    continue
                big = rows.seconds >= LAUNCH_S
                held = ours & divided.heldout_shapes
                cells = figures(found[held & big], rows.seconds[held & big])
                others = [mape(found[mask], rows.seconds[mask]) for mask in (ours & divided.train & big, held & ~big)]
                sheet = mape(plain[held & big], rows.seconds[held & big])
                table.append([f"{source.gpu}, {name}", kind.replace("_", "-"), *cells, *others, sheet])
            reduces = rows.kind == "all_reduce"
            plotted[source.gpu] = (found[reduces], rows.seconds[reduces])
    header = ["tier, link", "collective", *HEADER, "training rows", "held out below 20 us", "datasheet, same rows"]
    return header, table, plotted


def network_table() -> tuple[list[str], list[list[str]]]:
    """Return the table of messages between nodes; groups with several GPUs per node were never fitted to."""
    table = []
    for name, (server, near) in NETWORKS.items():
        rows = joined(network_rows(server))
        far = rows.where(rows.nodes > 1)
        link, network = catalog.link(near), catalog.link(name)
        found = predicted_s(far, link, network)
        plain = predicted_s(far, datasheet(link), datasheet(network))
        divided = split(far.keys())
        for kind, gpus in sorted({(str(k), int(p)) for k, p in zip(far.kind, far.gpus, strict=True)}, key=lambda key: key[::-1]):
            mask = (far.kind == kind) & (far.gpus == gpus)
            fitted = gpus == (2 if kind == "send" else 16)
            shown = mask & divided.heldout_shapes if fitted else mask
            cells = figures(found[shown], far.seconds[shown])
            how = "held-out shapes" if fitted else "never fitted to"
            table.append(
                [
                    f"{server}, {name}",
                    f"{kind.replace('_', '-')}, {gpus} GPUs",
                    how,
                    *cells,
                    mape(plain[shown], far.seconds[shown]),
                ]
            )
    return ["servers, network", "between two nodes", "rows are", *HEADER, "datasheet, same rows"], table


def left_out_table() -> tuple[list[str], list[list[str]]]:
    """Return how many rows of each gpu's tables were left out, and why."""
    rows = []
    for sources in LINKS.values():
        for source in sources:
            joined_rows = joined(link_rows(source))
            rows += [[source.gpu, reason, f"{count:,}"] for reason, count in joined_rows.left_out.items()]
    return ["tier", "left out because", "rows"], rows


def main() -> None:
    """Write the section's tables and its figure."""
    header, rows, plotted = link_table()
    found = {
        "collectives": markdown(header, rows),
        "networks": markdown(*network_table()),
        "collectives-left-out": markdown(*left_out_table()),
    }
    fill(ROOT / "docs" / "accuracy.md", found, "python tests/benchmarks/accuracy_collectives.py")
    scatter(ROOT / "docs" / "accuracy" / "all-reduce.svg", "all-reduce, 2 to 8 GPUs", plotted)


if __name__ == "__main__":
    main()
