"""Fit the collectives of models/links to published measurements; run with ``make calibrate``.

Needs aiconfigurator-core's tables (the folder ``systems/data`` of the unpacked wheel, in ``$OPTSCHED_AICONFIGURATOR``) and Vidur's
network profiles (``profiles/vidur/network`` in ``$OPTSCHED_DATA``).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from optsched import catalog
from optsched.cost.collective_fit import ExchangeFit, fit_link, fit_network
from optsched.domain.collective_law import CollectiveLaw
from optsched.profiles.aiconfigurator_collectives import read_engine_all_reduce, read_nccl
from optsched.profiles.collectives import CollectiveRows
from optsched.profiles.vidur_network import read_vidur_network
from optsched.tier_file import with_tables

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Measured:
    """Where the collectives of one gpu over its own link were measured: folders of the tables."""

    gpu: str
    system: str
    engine: str
    nccl: str
    vidur: str | None = None


# The newest table of each gpu; vLLM's all-reduce.
LINKS = {
    "nvlink3": (Measured("a100-80gb", "a100_sxm", "vllm/0.14.0", "2.27.3", "a100_dgx"),),
    "nvlink4": (
        Measured("h100-sxm", "h100_sxm", "vllm/0.24.0", "2.29.2", "h100_dgx"),
        Measured("h200", "h200_sxm", "vllm/0.24.0", "2.29.2"),
    ),
    "nvlink5": (Measured("b200", "b200_sxm", "vllm/0.24.0", "2.29.2"),),
    "pcie4-x16": (Measured("l40s", "l40s", "vllm/0.22.0", "2.27.3"),),
    "pcie5-x16": (Measured("rtx-pro-6000", "rtx_pro_6000_server", "vllm/0.24.0", "2.29.2"),),
}
# Servers that each network was measured between, and the link within them.
NETWORKS = {"ethernet-100g": ("a100_dgx", "nvlink3"), "infiniband-ndr": ("h100_dgx", "nvlink4")}


def tables() -> Path:
    """Return the folder of aiconfigurator-core's tables."""
    return Path(os.environ["OPTSCHED_AICONFIGURATOR"])


def network_profiles() -> Path:
    """Return the folder of Vidur's network profiles."""
    return Path(os.environ["OPTSCHED_DATA"]) / "profiles" / "vidur" / "network"


def link_rows(measured: Measured) -> list[CollectiveRows]:
    """Return the tables of one gpu over its link, and Vidur's sends within a node where there are some."""
    folder = tables() / measured.system / "comm"
    parts = [
        read_engine_all_reduce(folder / measured.engine / "custom_allreduce_perf.parquet"),
        read_nccl(folder / "nccl" / measured.nccl / "nccl_perf.parquet"),
    ]
    if measured.vidur:
        sends = read_vidur_network(network_profiles() / measured.vidur / "send_recv.csv")
        parts.append(sends.where(sends.nodes == 1))
    return parts


def network_rows(name: str) -> list[CollectiveRows]:
    """Return Vidur's sends and all-reduces of one kind of server."""
    return [read_vidur_network(network_profiles() / name / file) for file in ("send_recv.csv", "all_reduce.csv")]


def fits() -> dict[str, tuple[CollectiveLaw, tuple[ExchangeFit, ...]]]:
    """Return the fitted law of each link."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {}
    for name, measured in LINKS.items():
        found[name] = fit_link([part for each in measured for part in link_rows(each)], catalog.link(name), today)
    for name, (server, near) in NETWORKS.items():
        within = catalog.link(near).replace(collectives=found[near][0])
        found[name] = fit_network(network_rows(server), catalog.link(name), within, today)
    return found


def main() -> None:
    """Write the fitted tables into models/links."""
    for name, (law, _) in fits().items():
        path = ROOT / "models" / "links" / f"{name}.toml"
        path.write_text(with_tables(path.read_text(), {"collectives": law}))


if __name__ == "__main__":
    main()
