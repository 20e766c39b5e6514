"""Where ``optsched calibrate`` writes a link file, and what it says of the link."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING

from optsched.cli.tier_writing import make_folder, today

if TYPE_CHECKING:
    from optsched.cost.link_fit import LinkFit
    from optsched.domain.hardware import Gpu, Link


def fitted_link(gpu: Gpu, fit: LinkFit, how: str) -> Link:
    """Return the link of a tier's machine with what was fitted.

    Parameters
    ----------
    gpu, fit
        The tier, and latency and rate.
    how
        Where the hand-overs come from, for example ``measured on this machine by 'optsched calibrate'``.
    """
    from optsched import catalog

    source = f"{how} on {today()}: {fit.num_handovers} hand-overs of cache over TCP, between workers idle and busy"
    link = catalog.link(gpu.datasheet.interconnect)
    law = {"latency_s": fit.latency_s, "bytes_per_s": fit.bytes_per_s, "busy_slowdown": fit.busy_slowdown}
    return link.replace(**law, source=source)


def write_link(link: Link, tier_file: Path) -> Path | None:
    """Write a link where plans that find the tier file find it too: a ``links`` folder beside its ``gpus`` folder.

    Returns
    -------
    Path or None
        The file; None if the tier file lies in no such folder.
    """
    from optsched.files import write_atomically
    from optsched.tier_file import with_tables

    if tier_file.resolve().parent.name != "gpus":
        return None
    path = tier_file.resolve().parent.parent / "links" / f"{link.name}.toml"
    make_folder(path.parent)
    fields = {
        "schema": "optsched/link", "version": 1, "name": link.name, "title": link.title, "bandwidth": link.bytes_per_s,
        "latency": link.latency_s, "joules_per_byte": link.joules_per_byte, "gpus_per_port": link.gpus_per_port,
        "busy_slowdown": link.busy_slowdown, "source": link.source,
    }  # fmt: skip
    text = "".join(f"{key} = {json_text.dumps(value)}\n" for key, value in fields.items())
    if link.collectives is not None:
        text = with_tables(text, {"collectives": link.collectives})
    write_atomically(path, text.encode())
    return path


def link_facts(link: Link | None, file: Path | None) -> dict[str, object]:
    """Return a link and the file it was written to as plain data."""
    return {
        "link": None
        if link is None
        else {
            "latency_s": link.latency_s,
            "bytes_per_s": link.bytes_per_s,
            "busy_slowdown": list(link.busy_slowdown),
        },
        "link_out": None if file is None else str(file),
    }


def link_in_words(link: Link) -> str:
    """Return a link's law in one line."""
    slow = " / ".join(f"{factor:.2f}" for factor in link.busy_slowdown)
    law = f"{link.latency_s * 1e3:.3g} ms + bytes / ({link.bytes_per_s / 1e9:.3g} GB/s)"
    return f"Hand-over of cache: {law}" + (f", slow-down with 0, 1, .. busy {slow}" if len(link.busy_slowdown) > 1 else "")
