"""Fit the collectives over a gpu's own interconnect to the tables that others published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optsched import catalog
from optsched.cost.collective_fit import fit_link
from optsched.domain.collective_law import CollectiveLaw
from optsched.domain.hardware import Gpu
from optsched.errors import SpecError
from optsched.profiles.aiconfigurator_collectives import read_engine_all_reduce, read_nccl
from optsched.profiles.collectives import CollectiveRows
from optsched.profiles.tables import column_names
from optsched.profiles.vidur_network import read_vidur_network

ENGINE = frozenset({"allreduce_dtype", "op_name", "num_gpus", "message_size", "latency", "kernel_source"})
NCCL = frozenset({"nccl_dtype", "op_name", "num_gpus", "message_size", "latency", "kernel_source"})
VIDUR = frozenset({"collective", "num_workers", "devices_per_node", "size"})
TABLE_COLUMNS = (ENGINE, NCCL, VIDUR)


def read_table(path: Path) -> CollectiveRows:
    """Return the rows of a table with one of `TABLE_COLUMNS`.

    Raises
    ------
    SpecError
        If it is damaged.
    """
    columns = column_names(path)
    if columns >= ENGINE:
        return read_engine_all_reduce(path)
    return read_nccl(path) if columns >= NCCL else read_vidur_network(path)


def fit_tables(gpu: Gpu, files: Sequence[Path], day: str) -> dict[str, CollectiveLaw]:
    """Return the law ``collectives`` of a gpu's own interconnect; kinds without rows keep their assumed laws.

    Parameters
    ----------
    gpu
        Whose interconnect the collectives passed.
    files
        Tables with one of `TABLE_COLUMNS`. Collectives over several nodes pass the network too and are not used.
    day
        Date of the fit.

    Raises
    ------
    SpecError
        If a table is damaged, or none has collectives within a node.
    """
    read = [read_table(path) for path in files]
    within = [rows.where(rows.nodes == 1) for rows in read]
    law, fits = fit_link([rows for rows in within if len(rows)], catalog.link(gpu.datasheet.interconnect), day)
    if not fits:
        listed = ", ".join(path.name for path in files)
        raise SpecError(f"{listed}: no collectives of 2, 4 and 8 GPUs within one node; give tables that have them")
    return {"collectives": law}
